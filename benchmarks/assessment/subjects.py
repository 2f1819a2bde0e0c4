"""Who is asked: bundles, and checkpoints with or without an adapter."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.assessment.generation import Generator
from benchmarks.assessment.speaker import Answering, Station
from train.artefact import folder_digest
from train.dataset import TASK
from wafervlm.bundle import MANIFEST, open_bundle
from wafervlm.errors import UsageError
from wafervlm.task import Task

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Subject:
    """One that is asked, under a ``name``: a bundle's or checkpoint's ``folder``, with its ``adapter``."""

    name: str
    folder: Path
    adapter: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Read NAME=FOLDER or NAME=FOLDER+ADAPTER. Raises UsageError."""
        name, equals, place = text.partition("=")
        if not equals or not _NAME.fullmatch(name) or not place:
            raise UsageError(
                f"subject {text!r} must be NAME=FOLDER or NAME=FOLDER+ADAPTER, as in sft=runs/base+runs/sft"
            )
        folder, adapter = _split(place)
        for path in (folder, adapter):
            if path is not None and not path.is_dir():
                raise UsageError(f"folder {path} of subject {name!r} does not exist; check the path")
        found = cls(name, folder, adapter)
        if found.is_bundle and adapter is not None:
            raise UsageError(f"subject {name!r} is a bundle, which takes no adapter; name its checkpoint")
        return found

    @property
    def is_bundle(self) -> bool:
        """Whether it is a bundle, which is asked through the station."""
        return (self.folder / MANIFEST).is_file()

    @property
    def digest(self) -> str:
        """sha256 of what it is made of."""
        if self.is_bundle:
            return open_bundle(self.folder).digest
        parts = [folder_digest(path) for path in (self.folder, self.adapter) if path is not None]
        return "+".join(parts)

    def task(self) -> Task | None:
        """The task that it was made for, where it says so."""
        if self.is_bundle:
            return open_bundle(self.folder).manifest.task
        folders = [path for path in (self.adapter, self.folder) if path is not None]
        found = next((path / TASK for path in folders if (path / TASK).is_file()), None)
        return None if found is None else Task.from_file(found)

    def open(self, task: Task, *, device: str, threads: int, batch: int) -> Answering:
        """Load it, to ask it on images of ``task``. Raises what loading raises."""
        if self.is_bundle:
            return Station(self.folder, threads)
        return Generator(self.folder, self.adapter, task, device=device, batch=batch)


def _split(place: str) -> tuple[Path, Path | None]:
    """Names of folders may hold a plus: it parts them where a folder stands on both sides."""
    parts = place.split("+")
    ways = [("+".join(parts[:at]), "+".join(parts[at:])) for at in range(1, len(parts))]
    if Path(place).is_dir() or not ways:
        return Path(place), None
    first, second = next((way for way in ways if all(Path(part).is_dir() for part in way)), ways[0])
    return Path(first), Path(second)
