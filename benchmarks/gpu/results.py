"""What a run writes: one JSON, rewritten after every row, from which an interrupted run goes on."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wafervlm.errors import UsageError

SCHEMA = 1
OK, SKIPPED, FAILED = "ok", "skipped", "failed"
_FRAMES = 6
Row = dict[str, Any]


class Results:
    """The rows of one run by key, kept in ``path``.

    A file that is there is gone on with: rows that are ok stay, all others are made again. Raises UsageError
    where it holds a result of other settings, of another device, or of something else.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
        self.path, self._settings, self._machine = path, dict(settings), dict(machine)
        self.rows: dict[str, Row] = {}
        self.shapes: dict[str, Any] = {}
        self.begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if path.exists():
            self._take_up(_read(path))

    def has(self, key: str) -> bool:
        """Whether the row ``key`` is there and ok."""
        return self.rows.get(key, {}).get("status") == OK

    def failed(self, key: str) -> bool:
        """Whether the row ``key`` is there and failed."""
        return str(self.rows.get(key, {}).get("status")).startswith(FAILED)

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Keep a row and write the file."""
        self.rows[key] = {"key": key, **row}
        self.write()

    def to_dict(self) -> dict[str, Any]:
        """The file's content; see the package's docstring."""
        from benchmarks.gpu.ratios import ratios

        rows = list(self.rows.values())
        return {
            "schema": SCHEMA,
            "begun": self.begun,
            "settings": self._settings,
            "machine": self._machine,
            "shapes": self.shapes,
            "rows": rows,
            "ratios": ratios(rows),
        }

    def drop(self, key: str) -> None:
        """Forget a row and write the file."""
        if self.rows.pop(key, None):
            self.write()

    def write(self) -> None:
        """Write the file beside its name and rename it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.writing")
        text = json.dumps(_plain(self.to_dict()), indent=1, allow_nan=False)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(self.path)

    def _take_up(self, found: Mapping[str, Any]) -> None:
        if found.get("schema") != SCHEMA or not isinstance(found.get("rows"), list):
            raise UsageError(f"{self.path} is not a result of this command; choose another --out")
        for what, here in (("settings", self._settings), ("machine", self._machine)):
            there = found.get(what, {})
            key = next((k for k in IDENTITY[what] or here if there.get(k) != _plain(here).get(k)), None)
            if key is not None:
                raise UsageError(
                    f"{self.path} was measured with {key} {there.get(key)!r}, and here it is "
                    f"{here.get(key)!r}; choose another --out, or remove it"
                )
        self.begun, self.shapes = str(found.get("begun", self.begun)), dict(found.get("shapes", {}))
        self.rows = {str(row["key"]): dict(row) for row in found["rows"]}


# What must be equal for a result to be gone on with; an empty tuple: everything.
IDENTITY: Mapping[str, tuple[str, ...]] = {"settings": (), "machine": ("device", "torch", "transformers")}


class Budget:
    """Seconds that may be spent, on all or on one part of it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end, self._seconds = clock, clock() + seconds, seconds

    def refusal(self, wanted: float = 0.0) -> str:
        """Why a step of about ``wanted`` seconds may not begin; "" where it may."""
        left = self._end - self._clock()
        if left > wanted:
            return ""
        return (
            f"its {self._seconds:.0f} s of the time budget are spent"
            if left <= 0
            else (f"of its time budget {left:.0f} s are left, and this takes about {wanted:.0f} s")
        )


def skipped(reason: str) -> Row:
    """A row that was not measured."""
    return {"status": f"{SKIPPED}: {_line(reason)}"}


def failed(error: BaseException) -> Row:
    """A row that ended in an error: what was raised, where, and what that came of, which is the cause where
    the recording of a graph ends in an error of its own."""
    row: Row = {"status": f"{FAILED}: {_said(error)}", "where": _where(error)}
    first = _first(error)
    return row if first is error else {**row, "came_of": _said(first), "came_of_where": _where(first)}


def _first(error: BaseException) -> BaseException:
    """The error that all others came of."""
    seen: set[int] = set()
    # Two may name each other.
    while id(error) not in seen:
        seen.add(id(error))
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        error = before or error
    return error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {_line(str(error)) or 'no message'}"


def _line(text: str) -> str:
    return " ".join(text.split())[:400]


def _where(error: BaseException) -> list[str]:
    """The innermost frames: file, line and function of each."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is there and cannot be read ({error}); choose another --out") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is not a result of this command; choose another --out")
    return found


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
