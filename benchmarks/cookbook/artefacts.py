"""The artefacts that a report is filled from: found in a folder of runs by their provenance, or named."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cookbook.reading import read_json
from train.artefact import PROVENANCE, folder_digest, read_provenance
from train.dataset import DIES
from train.vqa.build import RL
from wafervlm import console
from wafervlm.bundle import MANIFEST, open_bundle
from wafervlm.errors import UsageError

DEPTH = 3
BASES = ("nano-base", "random")
REPORT = "report.json"
# Nothing is made from these, so no stage names them by digest.
LEAVES = ("benchmark", "words", "comparison", "predictions")


@dataclass(frozen=True)
class Kind:
    """A kind of artefact: the ``stage`` that its provenance names, what it is, the command that makes it,
    and whether a report may show ``several``."""

    stage: str
    title: str
    made_by: str
    several: bool = False


KINDS = {
    "benchmark": Kind("benchmark", "benchmark report", "wafervlm benchmark"),
    "words": Kind("words", "assessment of words", "wafervlm benchmark --words"),
    "comparison": Kind("compare", "comparison of quantizations", "wafervlm calibrate --compare"),
    "predictions": Kind("predict", "answers of the bundle", "wafervlm run"),
    "bundle": Kind("export", "bundle", "wafervlm export"),
    "gptq": Kind("calibrate", "GPTQ checkpoint", "wafervlm calibrate"),
    "merged": Kind("merge", "merged checkpoint", "wafervlm merge"),
    "rl": Kind("rl", "adapter after reinforcement learning", "wafervlm train with a table [rl]"),
    "adapter": Kind("train", "LoRA adapter", "wafervlm train", several=True),
    "zero_shot": Kind("zero-shot", "zero-shot scores", "wafervlm run"),
    "vqa": Kind("vqa", "descriptions, rubrics and questions", "wafervlm data vqa"),
    "cleaned": Kind("clean", "cleaned labels", "wafervlm data clean"),
    "dataset": Kind("data", "dataset", "wafervlm data build", several=True),
    "base": Kind(BASES[0], "base checkpoint", "whoever published it"),
}
"""By the name of the option. In this order they are chosen, what is made before what it is made from."""
_BY_STAGE = {kind.stage: name for name, kind in KINDS.items()} | dict.fromkeys(BASES, "base")


@dataclass(frozen=True)
class Artefact:
    """A folder that a stage wrote, and its ``record``, the provenance; empty for a base without one."""

    kind: str
    path: Path
    record: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """The stage that wrote it, "" where that is not known."""
        return str(self.record.get("stage", ""))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The effective settings."""
        return self.record.get("settings") or {}

    @property
    def inputs(self) -> Mapping[str, str]:
        """Digests of what it was made from, by name."""
        return self.record.get("inputs") or {}

    @property
    def parity(self) -> Mapping[str, Any]:
        """What was measured when it was made."""
        return self.record.get("parity") or {}

    @property
    def created(self) -> str:
        """When, in UTC; "" where that is not known."""
        return str(self.record.get("created", ""))

    @functools.cached_property
    def digest(self) -> str:
        """sha256 under which the stages after it name it."""
        if (self.path / MANIFEST).is_file():
            return open_bundle(self.path).digest
        console.say(f"reading {self.path}")
        return folder_digest(self.path)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Its digest, and those of its files that stages name in its place."""
        files = [self.path / name for name in (DIES, RL) if (self.path / name).is_file()]
        return frozenset([self.digest, *(folder_digest(file) for file in files)])

    @functools.cached_property
    def origins(self) -> frozenset[str]:
        """Digests of what it was made from, as far back as it tells."""
        told = [self.record]
        if self.kind == "benchmark":
            told += read_json(self.path / REPORT, ("provenance",))["provenance"]
        if self.kind == "bundle":
            told += open_bundle(self.path).manifest.provenance
        given = [digest for record in told for digest in (record.get("inputs") or {}).values()]
        given += [str(record["digest"]) for record in told if record.get("digest")]
        return frozenset(part for digest in given for part in str(digest).split("+"))


Chosen = dict[str, list[Artefact]]


def choose(runs: Path | None, named: Mapping[str, Sequence[Path]]) -> Chosen:
    """The artefacts to report, by kind: those ``named``, else of those in the folder ``runs`` the ones that
    what was chosen before was made from, else the newest. Raises UsageError and ManifestError."""
    found: Chosen = {kind: [] for kind in KINDS}
    for artefact in [] if runs is None else list(find(runs)):
        found[artefact.kind].append(artefact)
    chosen: Chosen = {}
    origins: set[str] = set()
    for name, kind in KINDS.items():
        if named.get(name):
            chosen[name] = [open_named(name, path) for path in named[name]]
        else:
            chosen[name] = _fitting(found[name], origins, several=kind.several)
        origins.update(*(artefact.origins for artefact in chosen[name]))
    return chosen


def find(runs: Path) -> Iterator[Artefact]:
    """The artefacts in the folder ``runs`` and three folders deep. Raises UsageError where there is none."""
    if not runs.is_dir():
        raise UsageError(f"{runs} is not a folder of runs; give the folder that the stages wrote to")
    found = False
    for folder in _with_provenance(runs, DEPTH):
        record = read_provenance(folder)
        kind = _BY_STAGE.get(str(record.get("stage")))
        if kind is not None:
            found = True
            yield Artefact(kind, folder, record)
    if not found:
        raise UsageError(
            f"{runs} holds no artefact with a {PROVENANCE}; give the folder that the stages wrote to"
        )


def open_named(name: str, path: Path) -> Artefact:
    """The artefact at ``path`` that was named as the kind ``name``. Raises UsageError and ManifestError."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder; --{name.replace('_', '-')} names one")
    if name == "base" and not (path / PROVENANCE).is_file():
        return Artefact(name, path, {})
    record = read_provenance(path)
    kind = _BY_STAGE.get(str(record.get("stage")))
    if kind != name:
        raise UsageError(
            f"{path} was written by the stage {record.get('stage')!r}, and --{name.replace('_', '-')} names "
            f"what {KINDS[name].made_by} writes"
        )
    return Artefact(name, path, record)


def _with_provenance(folder: Path, depth: int) -> Iterator[Path]:
    """Folders with a provenance; what lies inside one is its own."""
    if (folder / PROVENANCE).is_file():
        yield folder
    elif depth >= 0:
        with os.scandir(folder) as entries:
            inner = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
        for name in inner:
            if not name.endswith(".partial"):
                yield from _with_provenance(folder / name, depth - 1)


def _fitting(found: Sequence[Artefact], origins: set[str], *, several: bool) -> list[Artefact]:
    if len(found) < 2:
        return list(found)
    latest = sorted(found, key=lambda one: (not _is_look(one), one.created), reverse=True)
    fitting = [one for one in latest if origins and _marks(one) & origins]
    return fitting if several and fitting else (fitting or latest)[:1]


def _marks(artefact: Artefact) -> frozenset[str]:
    """Digests that tell whether it belongs to what was chosen: its own, or those of a leaf's origins."""
    return artefact.origins if artefact.kind in LEAVES else artefact.names


def _is_look(artefact: Artefact) -> bool:
    return bool(artefact.settings.get("quick"))


def places_of(artefacts: Iterable[Artefact], others: Iterable[Path]) -> dict[str, Path]:
    """Where what a digest names lies: ``artefacts``, and ``others``, files and folders."""
    places = {folder_digest(path): path for path in others}
    for artefact in artefacts:
        if artefact.kind in LEAVES:
            continue
        places.update(dict.fromkeys(artefact.names, artefact.path))
    return places
