"""The dataset folder: images sorted by part and class, the die grids themselves, and the task.

::

    {train,tune,test}/{Class}/wafermap_{Class}_{i}.png
    dies.npz                          the die grids, losslessly, with label, id, lot, part and image of each
    annotations/{train,tune,test}.json   LLaVA-style questions and answers
    split.json  task.json  provenance.json

Reading takes the die grids; the images are for people and for other tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.progress import track
from train.sources import Rows, read_source
from train.sources.npz import load_arrays
from train.split_files import PARTS
from wafervlm.answers import classes_of, strangers
from wafervlm.errors import DatasetError, FileFormatError
from wafervlm.render import RenderSpec
from wafervlm.task import Task
from wafervlm.wafermap import DieGrid, WaferMap

DIES, TASK, SPLIT, ANNOTATIONS = "dies.npz", "task.json", "split.json", "annotations"
_ARRAYS = ("maps", "offsets", "heights", "widths", "labels", "ids", "lots", "split", "images")
# Tune may lack a rare class; training on or judging a class without maps cannot be meant.
_COMPLETE = ("train", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """A wafer map and the class it is said to show."""

    wafer: WaferMap
    label: str


def read_split(dataset: Path, split: str) -> list[Sample]:
    """Read the samples of part ``split`` ("train", "tune" or "test") of a dataset folder, in their order.

    Raises DatasetError where it is no dataset folder, an image is missing, a label is not the task's, or a
    class has no map in train or test.
    """
    dataset = Path(dataset)
    task, arrays = dataset_task(dataset), _arrays(dataset)
    found = np.flatnonzero(arrays["split"] == split)
    if not len(found):
        known = ", ".join(part for part in PARTS if (arrays["split"] == part).any())
        raise DatasetError(f"{dataset} has no part {split!r}; it has {known}")
    check_labels(dataset, split, arrays["labels"][found], task)
    missing = next((name for name in arrays["images"][found] if not (dataset / str(name)).is_file()), None)
    if missing is not None:
        raise DatasetError(f"image {missing} of dataset {dataset} is missing; build the dataset again")
    return [_sample(dataset, arrays, int(row)) for row in found]


def read_labelled(path: Path, split: str | None = None, *, spec: RenderSpec | None = None) -> list[Sample]:
    """Read labelled maps from a dataset folder (one part, or all), or from any source that ``read_source``
    takes: a .npz, a pickle, a folder of class folders (images in the palette of ``spec``).

    Raises DatasetError or FileFormatError.
    """
    path = Path(path)
    if not (path / DIES).is_file():
        if split is not None:
            raise DatasetError(f"{path} is not a dataset folder, so it has no part {split!r}")
        rows = read_source(path, spec)
        labelled = np.flatnonzero(rows.labels != "")
        return [Sample(rows.wafer(int(row)), str(rows.labels[row])) for row in labelled]
    parts = [split] if split else [part for part in PARTS if (_arrays(path)["split"] == part).any()]
    return [sample for part in parts for sample in read_split(path, part)]


def dataset_task(path: Path) -> Task:
    """The task that a dataset folder was built for. Raises DatasetError where it has none."""
    path = Path(path)
    if not (path / TASK).is_file():
        raise DatasetError(
            f"{path} is not a dataset folder: it has no {TASK}; make one with wafervlm data build"
        )
    return Task.from_file(path / TASK)


def write_maps(
    folder: Path,
    parts: Mapping[str, Rows],
    task: Task,
    draw: Callable[[DieGrid], NDArray[np.uint8]],
    *,
    count_on: bool = False,
) -> dict[str, list[tuple[str, str]]]:
    """Write images, dies.npz and task.json of ``parts`` into ``folder``; return (image path, label) by part.

    ``draw`` turns a die grid into (H, W, 3) or (H, W, 4) uint8. Images are numbered by class and part from 0,
    or on from the part before with ``count_on``. Raises DatasetError where a class of the task has no map in
    train or test, or a label is not the task's.
    """
    numbers: dict[tuple[str, str], int] = {}
    images: dict[str, list[tuple[str, str]]] = {}
    for part, rows in parts.items():
        check_labels(folder, part, rows.labels, task)
        images[part] = []
        for label in rows.labels.tolist():
            counter = (label, "" if count_on else part)
            number = numbers[counter] = numbers.get(counter, -1) + 1
            images[part].append((_image_name(part, label, number), label))
    placed = [(rows, row, images[part][row][0]) for part, rows in parts.items() for row in range(len(rows))]
    for rows, row, name in track(placed, "write images"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(rows.grid(row))).save(folder / name)
    _write_dies(folder, parts, images)
    write_task(task, folder)
    return images


def write_task(task: Task, folder: Path) -> None:
    """Write ``task`` to task.json in ``folder``."""
    text = json.dumps(task.to_dict(), indent=1, ensure_ascii=False)
    (folder / TASK).write_text(text + "\n", encoding="utf-8")


def _write_dies(folder: Path, parts: Mapping[str, Rows], images: Mapping[str, list[tuple[str, str]]]) -> None:
    placed = [(part, rows, row) for part, rows in parts.items() for row in range(len(rows))]
    grids = [rows.grid(row) for _, rows, row in placed]
    arrays = {
        "maps": np.concatenate([grid.ravel() for grid in grids]),
        "offsets": np.cumsum([0, *(grid.size for grid in grids)], dtype=np.int64),
        "heights": np.array([grid.shape[0] for grid in grids], dtype=np.int16),
        "widths": np.array([grid.shape[1] for grid in grids], dtype=np.int16),
        "labels": np.array([rows.labels[row] for _, rows, row in placed]),
        "ids": np.array([str(rows.source_index[row]) for _, rows, row in placed]),
        "lots": np.array([rows.lots[row] for _, rows, row in placed]),
        "split": np.array([part for part, _, _ in placed]),
        "images": np.array([images[part][row][0] for part, _, row in placed]),
    }
    np.savez_compressed(folder / DIES, allow_pickle=False, **arrays)


def _image_name(part: str, label: str, number: int) -> str:
    if label != PurePosixPath(label).name or label.startswith(".") or "\\" in label or ":" in label:
        raise DatasetError(f"label {label!r} cannot be the name of a folder; rename the class")
    return f"{part}/{label}/wafermap_{label}_{number}.png"


def _arrays(dataset: Path) -> dict[str, Any]:
    if not (dataset / DIES).is_file():
        raise DatasetError(f"{dataset} is not a dataset folder: it has no {DIES}")
    try:
        return load_arrays(dataset / DIES, _ARRAYS)
    except FileFormatError as error:
        raise DatasetError(f"the dataset is broken: {error}") from None


def check_labels(dataset: Path, part: str, labels: NDArray[np.str_], task: Task) -> None:
    """Raise DatasetError where a label is not of the task, or a class has no map in train or test."""
    unknown = strangers(task, labels.tolist())
    if unknown:
        raise DatasetError(
            f"{part} of {dataset} has maps labelled {unknown[0]!r}, which is not one of the task's labels: "
            f"{', '.join(task.labels)}"
        )
    found = {name for label in set(labels.tolist()) for name in classes_of(task, label)}
    empty = [label for label in task.labels if label not in found]
    if empty and part in _COMPLETE:
        raise DatasetError(
            f"class {empty[0]!r} has no map in {part} of {dataset}; give more maps or leave the class out"
        )


def _sample(dataset: Path, arrays: Mapping[str, Any], row: int) -> Sample:
    start, end = int(arrays["offsets"][row]), int(arrays["offsets"][row + 1])
    height, width = int(arrays["heights"][row]), int(arrays["widths"][row])
    if height * width != end - start or end > arrays["maps"].size:
        raise DatasetError(f"the dies of map {row} in {dataset / DIES} do not fit its {height}x{width} grid")
    dies = arrays["maps"][start:end].reshape(height, width)
    return Sample(
        WaferMap(dies, id=str(arrays["ids"][row]), lot=str(arrays["lots"][row])), str(arrays["labels"][row])
    )
