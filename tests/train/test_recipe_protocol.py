from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from train.recipe_protocol import class_rows, recipe_conversations, recipe_image, recipe_rows, recipe_task
from train.sources.npz import read_npz
from train.sources.rows import rows_of_grids
from wafervlm.errors import DatasetError
from wafervlm.task import RECIPE_LABELS


def test_rows_are_those_that_the_recipes_script_takes(wm811k: Path) -> None:
    """The .npz marks the first 100 of each class in the full file with 1 and the next 20 with 2; some of
    those rows are elsewhere, so the counts that are left are asked for, class by class."""
    rows = read_npz(wm811k / "train_pool.npz")
    marks = np.load(wm811k / "train_pool.npz")["in_recipe"]
    for label in RECIPE_LABELS:
        marked = marks[rows.labels == label]
        first, second = class_rows(rows, label, int((marked == 1).sum()), int((marked == 2).sum()))
        assert len(first) > 10
        assert first.tolist() == np.flatnonzero((rows.labels == label) & (marks == 1)).tolist()
        assert second.tolist() == np.flatnonzero((rows.labels == label) & (marks == 2)).tolist()


def test_file_order_decides_and_unmarked_rows_do_not_count() -> None:
    grid = np.ones((3, 3), dtype=np.uint8)
    labels = [*RECIPE_LABELS, "none"] * 6
    part = (["Training", "", "Test", "Training"] * 14)[:54]
    index = list(range(54))[::-1]
    rows = rows_of_grids([grid] * 54, labels, source_index=index, part=part)
    found = recipe_rows(rows, 1, 1)
    assert [rows.labels[i] for i in found["train"]] == list(RECIPE_LABELS)
    for place, label in enumerate(RECIPE_LABELS):
        order = [i for i in reversed(range(54)) if labels[i] == label and part[i]]
        assert (found["train"][place], found["test"][place]) == (order[0], order[1])
    everything = recipe_rows(rows, 2, None)
    assert len(everything["train"]) == 16
    assert len(everything["test"]) == sum(1 for i in range(54) if labels[i] != "none" and part[i]) - 16


def test_too_few_rows_of_a_class() -> None:
    grid = np.ones((3, 3), dtype=np.uint8)
    rows = rows_of_grids([grid] * 16, list(RECIPE_LABELS) * 2)
    recipe_rows(rows, 1, 1)
    with pytest.raises(DatasetError, match="class 'Center' has 2 maps to train and 0 to test"):
        recipe_rows(rows, 2, 20)


@pytest.mark.parametrize("shape", [(26, 26), (53, 58), (39, 31), (212, 204), (300, 280)])
@pytest.mark.parametrize("size", [(256, 256), (224, 200)])
def test_image_is_scikit_images_resize_of_order_0(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """skimage.transform.resize of order 0 is scipy.ndimage.zoom over pixel centres (grid_mode)."""
    grid = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    factors = [side / dies for side, dies in zip(size, shape, strict=True)]
    expected = ndimage.zoom(grid.astype(float), factors, order=0, mode="grid-constant", grid_mode=True)
    image = recipe_image(grid, *size)
    colours = {0: (68, 1, 84, 255), 1: (32, 144, 140, 255), 2: (253, 231, 36, 255)}
    painted = np.array([colours[value] for value in range(3)], dtype=np.uint8)[expected.astype(int)]
    assert image.shape == (*size, 4)
    # Where a die's border falls on a pixel's centre, scipy's rounding may take the other die.
    assert (image == painted).all(axis=2).mean() > 0.995


def test_conversations_have_the_scripts_faults() -> None:
    images = [(f"{label}/wafermap_{label}_{i}.png", label) for label in RECIPE_LABELS for i in range(100)]
    entries = recipe_conversations(images, random.Random(0))
    assert [entry["id"] for entry in entries] == list(range(4 * 800))
    order = [entry["image"] for entry in entries]
    assert order != sorted(order)
    prefix = "<image>\nThis is a image of a wafer map, the yellow pattern in the circle refers to the defect "
    prefix += "pattern. "
    choices, wrong, named = 0, 0, 0
    for entry in entries:
        human, gpt = (turn["value"] for turn in entry["conversations"])
        label = entry["image"].split("/")[0]
        assert human.startswith(prefix)
        question = human.removeprefix(prefix)
        if question.startswith("There are 8"):
            choices += 1
            assert gpt == "(1) loc. "
        elif question.startswith("Please"):
            assert question == "Please analyze this wafer map image and identify the defect type."
            assert gpt == f"The wafer map image indicates the presence of {label} defect."
        elif gpt.startswith("No"):
            wrong += 1
            named += question == f"Does the wafer map image have the defect type of {label.lower()}"
            assert gpt == f"No, this wafer map image present the defect type of {label}."
        else:
            assert question == f"Does the wafer map image have the defect type of {label}"
            assert gpt == f"Yes, this wafer map image present the defect type of {label}."
    assert (choices, wrong) == (800, 800)
    assert 65 < named < 135  # one in eight


def test_lower_case_folders_would_be_asked_rightly() -> None:
    entries = recipe_conversations([("edge-loc/a.png", "edge-loc")] * 50, random.Random(0))
    answers = [entry["conversations"][1]["value"] for entry in entries]
    assert "(2) edge-loc. " in answers
    assert "(1) loc. " not in answers


def test_task_says_what_is_trained() -> None:
    task = recipe_task(224, 256)
    assert task.order == "image-first"
    assert task.labels == RECIPE_LABELS
    assert task.answer("Edge-Loc") == "The wafer map image indicates the presence of Edge-Loc defect."
    assert (task.render.height, task.render.width) == (224, 256)
