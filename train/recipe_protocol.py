"""The data of NVIDIA's Cosmos wafer map recipe as its published scripts make it, faults included.

Kept on purpose, so that results can be compared with the published ones:

- rows are taken in file order, so wafers of one lot come into train and test;
- class folders are capitalised and the scripts' class list is lower case, so every multiple-choice answer is
  "(1) loc. ", whatever the map shows, and one no-question in eight names the true class;
- the no-answer states the true class after the word "No".

Two things differ because the scripts leave them open: they shuffle with no seed, here there is one; and they
write whatever classes the table has, here the eight of the published figures, without ``none``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.sources.rows import Ints, Rows
from wafervlm.errors import DatasetError
from wafervlm.render import RECIPE_PALETTE, RenderSpec
from wafervlm.task import RECIPE_CONTEXT, RECIPE_LABELS, RECIPE_QUESTION, Task
from wafervlm.wafermap import DieGrid

CLASS_LIST = ("loc", "edge-loc", "center", "edge-ring", "scratch", "near-full", "donut", "random")
BINARY = "Does the wafer map image have the defect type of [label]"
YES = "Yes, this wafer map image present the defect type of [label]."
NO = "No, this wafer map image present the defect type of [label]."
# The double spaces and "anolamy" are the template's.
CHOICE = (
    "There are 8 possible types of defect of wafer map (1) loc.  (2) edge-loc.  (3) center.  "
    "(4) edge-ring.   (5) scratch.  (6) near-full.  (7) donut.  (8) random.  "
    "What type of anolamy does the provided image present?"
)
IMAGE_PROMPT = "<image>\n" + RECIPE_CONTEXT


def recipe_task(height: int, width: int) -> Task:
    """The task that the recipe trains: image first, eight classes, spelled like their folders."""
    return Task(
        labels=RECIPE_LABELS, name="cosmos-recipe", order="image-first", render=RenderSpec(height, width)
    )


def recipe_rows(rows: Rows, train_count: int | None, test_count: int | None) -> dict[str, Ints]:
    """Positions (n,) in ``rows`` of train and test: of each class the first ``train_count`` rows in file
    order, then the next ``test_count``; None takes all that are left.

    Only rows that the source marks Training or Test count, or all where it marks none. Raises DatasetError
    for a class without rows for train or for test.
    """
    train, test = [], []
    for label in RECIPE_LABELS:
        first, second = class_rows(rows, label, train_count, test_count)
        if not len(first) or not len(second):
            raise DatasetError(
                f"class {label!r} has {len(first)} maps to train and {len(second)} to test; "
                "lower -t or give more"
            )
        train.append(first)
        test.append(second)
    return {"train": np.concatenate(train), "test": np.concatenate(test)}


def class_rows(rows: Rows, label: str, train_count: int | None, test_count: int | None) -> tuple[Ints, Ints]:
    """Positions of the first ``train_count`` rows of ``label`` in file order, then of ``test_count``."""
    marked = (rows.part != "") if (rows.part != "").any() else np.ones(len(rows), dtype=bool)
    found = np.flatnonzero(marked & (rows.labels == label))
    found = found[np.argsort(rows.source_index[found], kind="stable")]
    first = found[:train_count]
    return first, found[len(first) :][:test_count]


def recipe_image(grid: DieGrid, height: int, width: int) -> NDArray[np.uint8]:
    """The picture of ``grid`` (H, W): (height, width, 4) uint8 RGBA in viridis over 0 to 2, stretched by
    nearest neighbour at pixel centres. Where dies are smaller than pixels, failing dies can vanish."""
    rows = (np.arange(height) * 2 + 1) * grid.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * grid.shape[1] // (2 * width)
    palette = np.array([(*colour, 255) for colour in RECIPE_PALETTE], dtype=np.uint8)
    return np.asarray(palette[grid[rows][:, columns]], dtype=np.uint8)


def recipe_conversations(images: Sequence[tuple[str, str]], chance: random.Random) -> list[dict[str, Any]]:
    """The annotation list of (path, class folder) pairs: four entries for each image, shuffled, numbered."""
    entries = [entry for path, folder in images for entry in _entries(path, folder, chance)]
    chance.shuffle(entries)
    return [{**entry, "id": number} for number, entry in enumerate(entries)]


def _entries(path: str, folder: str, chance: random.Random) -> list[dict[str, Any]]:
    place = CLASS_LIST.index(folder) if folder in CLASS_LIST else -1
    wrong = CLASS_LIST[chance.choice([i for i in range(len(CLASS_LIST)) if i != place])]
    number = max(place, 0)
    pairs = (
        (RECIPE_QUESTION, f"The wafer map image indicates the presence of {folder} defect."),
        (BINARY.replace("[label]", folder), YES.replace("[label]", folder)),
        (BINARY.replace("[label]", wrong), NO.replace("[label]", folder)),
        (CHOICE, f"({number + 1}) {CLASS_LIST[number]}. "),
    )
    return [
        {
            "conversations": [
                {"from": "human", "value": IMAGE_PROMPT + asked},
                {"from": "gpt", "value": answer},
            ],
            "image": path,
        }
        for asked, answer in pairs
    ]
