"""Cleaning labelled maps into a folder: ``wafervlm data clean``.

The folder is a dataset folder, which ``wafervlm train`` and ``wafervlm data vqa`` take, and beside that::

    maps.npz             all maps with the labels that they now have, for wafervlm data build
    suspects.csv         the ranked suspects        sheet.png            the first of them
    representatives.csv  near-centre and far maps   representatives.png  of each class
    report.md            what was found and done, in words and tables
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from train.artefact import Provenance, folder_digest, is_complete, require_free, write_provenance, writing
from train.build import BuildConfig, write_parts
from train.cleaning.duplicates import Conflict
from train.cleaning.features import read_features
from train.cleaning.npz import write_npz
from train.cleaning.parts import judge_parts
from train.cleaning.source import Labelled, read_labelled_rows
from train.cleaning.suspects import Judged, Suspect
from train.dataset import SPLIT
from train.sources import SYNTHETIC
from train.sources.rows import Rows
from train.split_files import describe_split, split_path, write_split
from wafervlm.errors import UsageError

NANO_BASE = Path(__file__).resolve().parents[1] / "nano" / "weights" / "base"
MAPS = "maps.npz"


@dataclass(frozen=True)
class CleanConfig:
    """What to clean. ``build`` names the source and how it is read and split. ``base`` is the checkpoint that
    looks at the maps. Of the ranked suspects the first ``drop``, or those that score ``drop_above`` or more,
    are left out, or with ``relabel`` get the suggested label; with neither nothing is changed. Part test is
    changed only with ``test_too``. ``shown`` suspects are on the sheet; ``features`` is a file to keep
    features in."""

    build: BuildConfig
    base: Path = NANO_BASE
    drop: int | None = None
    drop_above: float | None = None
    relabel: bool = False
    test_too: bool = False
    shown: int = 48
    device: str = "cpu"
    features: Path | None = None

    def __post_init__(self) -> None:
        if self.drop is not None and self.drop_above is not None:
            raise UsageError("give a number of suspects or a score, not both")
        if self.drop is not None and self.drop < 1:
            raise UsageError(f"{self.drop} suspects cannot be changed; give 1 or more")
        if self.drop_above is not None and not 0.5 <= self.drop_above <= 1:
            raise UsageError(f"a score of {self.drop_above:g} is no limit; give one from 0.5 to 1")
        if self.relabel and self.drop is None and self.drop_above is None:
            raise UsageError("say which suspects get the suggested label: a number of them, or a score")


def clean(config: CleanConfig, out: Path) -> tuple[dict[str, Any], bool]:
    """Write the folder ``out``; return counts of what was found and done, and whether it was written now.

    A complete ``out`` of the same inputs and settings is left as it is. Raises DatasetError, FileFormatError,
    CheckpointError or UsageError.
    """
    from train.artefact import read_provenance

    out, provenance = Path(out), _provenance(config)
    if is_complete(out, provenance):
        return dict(read_provenance(out)["parity"]), False
    require_free(out, provenance)
    given = read_labelled_rows(config.build)
    features = read_features(
        given.rows,
        config.base,
        spec=given.task.render,
        device=config.device,
        keep=config.features,
    )
    judged = judge_parts(given, features.geometry, features.vision, seed=config.build.seed)
    changed = chosen(config, judged.suspects, given.part_of())
    with writing(out) as work:
        counts = _write(work, config, given, judged, changed)
        write_provenance(work, replace(provenance, parity=counts))
    return counts, True


def chosen(config: CleanConfig, suspects: Sequence[Suspect], parts: Sequence[str]) -> list[Suspect]:
    """The suspects that are left out or relabelled, in the order of their rank."""
    open_to = [s for s in suspects if config.test_too or parts[s.row] != "test"]
    if config.drop_above is not None:
        return [s for s in open_to if s.score >= config.drop_above]
    return open_to[: config.drop] if config.drop is not None else []


def apply(
    rows: Rows, changed: Sequence[Suspect], found: Sequence[Conflict], *, relabel: bool
) -> tuple[Rows, np.ndarray[Any, Any]]:
    """``rows`` with the labels that they now have, and which of them stay (N,) bool. Rows of the conflicts
    ``found`` that now agree are disputed no more."""
    kept = np.ones(len(rows), dtype=bool)
    labels, disputed = rows.labels.astype(object), rows.disputed.copy()
    if relabel:
        for suspect in changed:
            labels[suspect.row], disputed[suspect.row] = suspect.suggested, False
    else:
        kept[[s.row for s in changed]] = False
    for conflict in found:
        left = [row for row in conflict.rows if kept[row]]
        if len({labels[row] for row in left}) == 1:
            disputed[left] = False
    return replace(rows, labels=labels.astype(np.str_), disputed=disputed), kept


def _write(
    work: Path, config: CleanConfig, given: Labelled, judged: Judged, changed: Sequence[Suspect]
) -> dict[str, Any]:
    from train.cleaning.pictures import write_representatives_sheet, write_sheet
    from train.cleaning.tables import write_report, write_representatives, write_suspects

    rows, kept = apply(given.rows, changed, judged.conflicts, relabel=config.relabel)
    write_npz(rows.take(kept), work / MAPS)
    parts = {part: places[kept[places]] for part, places in given.parts.items()}
    if parts:
        write_parts(
            work, {part: rows.take(places) for part, places in parts.items()}, given.task, given.config
        )
        about = f"The parts of {given.config.source.name} after its labels were cleaned."
        record = describe_split(
            rows, parts, name="cleaned", about=about, settings={"seed": given.config.seed}
        )
        write_split(record, work / SPLIT)
    done = ("relabelled" if config.relabel else "dropped") if changed else "listed"
    counts = {
        "maps": len(rows),
        "suspects": len(judged.suspects),
        "conflicts": len(judged.conflicts),
        "dropped": 0 if config.relabel else len(changed),
        "relabelled": len(changed) if config.relabel else 0,
        "parts": {part: len(places) for part, places in parts.items()},
    }
    if parts:
        # Lots, and turned copies, that other parts hold.
        counts["in_no_part"] = int(kept.sum()) - sum(map(len, parts.values()))
    acts = {s.row: done for s in changed}
    write_suspects(work / "suspects.csv", given, judged, acts)
    write_representatives(work / "representatives.csv", given, judged)
    write_sheet(work / "sheet.png", given, judged, config.shown)
    write_representatives_sheet(work / "representatives.png", given, judged)
    write_report(work / "report.md", given, judged, acts, counts)
    return counts


def _provenance(config: CleanConfig) -> Provenance:
    build, drawn = config.build, str(config.build.source) == SYNTHETIC
    if not drawn and not build.source.exists():
        raise UsageError(f"{build.source} does not exist; give a dataset folder or a source of labelled maps")
    inputs = {
        "source": SYNTHETIC if drawn else folder_digest(build.source),
        "base": folder_digest(config.base),
    }
    if build.split:
        inputs["split"] = folder_digest(split_path(build.split))
    settings = {
        name: getattr(config, name) for name in ("drop", "drop_above", "relabel", "test_too", "shown")
    }
    return Provenance(
        "clean",
        inputs=inputs,
        settings={**settings, "skip_unknown": build.skip_unknown, "task": build.settled_task().to_dict()},
        seed=build.seed,
    )
