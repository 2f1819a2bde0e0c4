"""Features that a run which was stopped has left, so that the next one goes on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Partial:
    """The file ``path``: a line that says what its rows were ``made_from``, then the rows, float32."""

    path: Path
    made_from: str

    def begin(self, width: int) -> Rows:
        """The whole rows (N, ``width``) that are there, none where they were made from something else; others
        may be added after these."""
        head = json.dumps({"made_from": self.made_from, "width": width}).encode() + b"\n"
        stored = self.path.read_bytes() if self.path.is_file() else b""
        raw = stored[len(head) :] if stored.startswith(head) else b""
        rows = np.frombuffer(raw[: len(raw) // (4 * width) * 4 * width], np.float32).reshape(-1, width)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(head + rows.tobytes())
        return rows

    def add(self, rows: Rows) -> None:
        """Keep ``rows`` too."""
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, np.float32).tobytes())

    def remove(self) -> None:
        """Leave nothing behind."""
        self.path.unlink(missing_ok=True)
