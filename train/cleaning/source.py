"""What is cleaned: labelled maps of a source or of a dataset folder, with the parts that they belong to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from train.artefact import PROVENANCE, read_provenance
from train.build import BuildConfig, known_rows
from train.dataset import DIES, check_labels, dataset_task, read_split
from train.sources import Rows, read_source
from train.sources.npz import load_arrays
from train.sources.rows import Ints, rows_of_grids
from train.split_files import PARTS, apply_split, read_split_file, split_path
from train.splits import split_rows
from wafervlm.errors import DatasetError, UsageError, WaferVLMWarning
from wafervlm.task import Task


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled ``rows`` and the positions of each part in them; ``config`` says how a dataset folder of them
    is built. ``whole`` where it was a dataset folder: then every row is in a part."""

    rows: Rows
    parts: Mapping[str, Ints]
    config: BuildConfig
    whole: bool

    @property
    def task(self) -> Task:
        """The task with the image size in effect."""
        return self.config.settled_task()

    def part_of(self) -> list[str]:
        """The part of each row, "" for those in none."""
        names = [""] * len(self.rows)
        for part, places in self.parts.items():
            for place in places.tolist():
                names[place] = part
        return names


def read_labelled_rows(config: BuildConfig) -> Labelled:
    """Read the dataset folder or the source that ``config`` names; a source is split as ``wafervlm data
    build`` splits it, or by the split file that ``config`` names. Where there are too few lots to split,
    there are no parts, and a warning says so. Raises DatasetError or FileFormatError."""
    path = Path(config.source)
    if (path / DIES).is_file():
        if config.split is not None:
            raise UsageError(f"{path} is a dataset folder and has its parts; leave out the split file")
        return _dataset(path, config)
    rows = known_rows(read_source(path, config.task.render), config.settled_task(), config)
    if not len(rows):
        raise DatasetError(f"{path} has no labelled map of the task's classes; there is nothing to clean")
    return Labelled(rows, _parts(rows, config), config, whole=False)


def _dataset(path: Path, config: BuildConfig) -> Labelled:
    names = set(load_arrays(path / DIES, ("split",))["split"].tolist())
    samples = {part: read_split(path, part) for part in PARTS if part in names}
    joined = [sample for of in samples.values() for sample in of]
    ids = [sample.wafer.id for sample in joined]
    numbered = len(set(ids)) == len(ids) and all(name.isdigit() for name in ids)
    rows = rows_of_grids(
        [sample.wafer.dies for sample in joined],
        [sample.label for sample in joined],
        lots=[sample.wafer.lot for sample in joined],
        source_index=[int(name) for name in ids] if numbered else None,
        ordered=numbered,
    )
    ends = np.cumsum([0, *(len(of) for of in samples.values())])
    parts = {part: np.arange(ends[i], ends[i + 1]) for i, part in enumerate(samples)}
    return Labelled(rows, parts, _as_built(path, config), whole=True)


def _as_built(path: Path, config: BuildConfig) -> BuildConfig:
    """As the folder was built: its task, and the recipe's questions where it has those."""
    settings = read_provenance(path).get("settings", {}) if (path / PROVENANCE).is_file() else {}
    task = dataset_task(path)
    if settings.get("protocol") == "recipe":
        size = (task.render.height, task.render.width)
        return replace(config, protocol="recipe", size=size)
    return replace(config, task=task, size=None)


def _parts(rows: Rows, config: BuildConfig) -> dict[str, Ints]:
    if config.split is not None:
        return apply_split(rows, read_split_file(split_path(config.split)))
    try:
        made = split_rows(rows, name=Path(config.source).stem, about="", seed=config.seed)
        parts = apply_split(rows, made)
        for part, places in parts.items():
            check_labels(Path(config.source), part, rows.labels[places], config.settled_task())
    except DatasetError as error:
        told = f"{config.source} cannot be split, so no dataset folder is written, only maps: {error}"
        warnings.warn(told, WaferVLMWarning, 2)
        return {}
    return parts
