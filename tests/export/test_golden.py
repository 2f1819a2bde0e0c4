"""Golden maps: which are taken."""

from __future__ import annotations

import pytest

from export.golden import chosen_golden, synthetic_golden
from train.dataset import Sample
from wafervlm.errors import DatasetError
from wafervlm.task import WAFER_DEFECTS, Task
from wafervlm.wafermap import WaferMap


def test_synthetic_maps_cover_every_label_and_are_reproducible() -> None:
    samples = synthetic_golden(WAFER_DEFECTS, seed=3)
    assert [sample.label for sample in samples] == [label for label in WAFER_DEFECTS.labels for _ in range(2)]
    again = synthetic_golden(WAFER_DEFECTS, seed=3)
    assert [sample.wafer.digest for sample in samples] == [sample.wafer.digest for sample in again]
    assert len({sample.wafer.digest for sample in samples}) == len(samples)


def test_labels_of_ones_own_get_scenes_without_a_label() -> None:
    samples = synthetic_golden(Task(labels=("Center", "coffee stain")), seed=0)
    assert [sample.label for sample in samples] == ["Center", "Center", "", ""]


def test_a_choice_from_the_dataset_takes_some_of_each_label(
    synthetic_wafers: list[tuple[WaferMap, str]],
) -> None:
    samples = [Sample(wafer, label) for wafer, label in synthetic_wafers]
    chosen = chosen_golden(samples, WAFER_DEFECTS, seed=1)
    assert [sample.label for sample in chosen] == [label for label in WAFER_DEFECTS.labels for _ in range(2)]
    assert all(sample in samples for sample in chosen)
    with pytest.raises(DatasetError, match="no map with a label"):
        chosen_golden([], WAFER_DEFECTS, seed=1)
