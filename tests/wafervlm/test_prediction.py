from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wafervlm.errors import WaferVLMError
from wafervlm.prediction import Prediction
from wafervlm.readers.image import read_image
from wafervlm.render import RECIPE_PALETTE, RenderSpec, render
from wafervlm.task import WAFER_DEFECTS
from wafervlm.wafermap import WaferMap

SCORES = dict(zip(WAFER_DEFECTS.labels, [0.01, 0.02, 0.05, 0.85, 0.02, 0.0, 0.01, 0.03, 0.01], strict=True))
TIMING = {"read": 0.1, "render": 0.2, "run": 4.0, "total": 4.5}
WAFER = WaferMap(np.pad(np.random.default_rng(4).integers(1, 3, (17, 19)), 2), id="lot1-w3", lot="lot1")


def answer(**changes: Any) -> Prediction:
    values: dict[str, Any] = {
        "label": "Edge-Ring",
        "confidence": 0.85,
        "scores": SCORES,
        "timing_ms": TIMING,
        "id": "lot1-w3",
        "task": WAFER_DEFECTS.digest,
        "bundle": "b" * 64,
        "wafer": WAFER,
    }
    return Prediction(**{**values, **changes})


def test_a_prediction_is_frozen() -> None:
    mine = dict(SCORES)
    prediction = answer(scores=mine)
    mine["none"] = 7.0
    assert prediction.scores == SCORES
    assert list(prediction.scores) == list(WAFER_DEFECTS.labels)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.label = "none"  # type: ignore[misc]
    with pytest.raises(TypeError):
        prediction.scores["none"] = 1.0  # type: ignore[index]
    with pytest.raises(TypeError):
        prediction.timing_ms["run"] = 1.0  # type: ignore[index]


def test_numpy_numbers_become_plain_ones() -> None:
    scores = {label: np.float64(score) for label, score in SCORES.items()}
    plain = answer(
        scores=scores, confidence=scores["Edge-Ring"], timing_ms={"total": np.float32(1)}
    ).to_dict()
    assert type(plain["confidence"]) is float
    assert {type(v) for v in plain["scores"].values()} == {float}
    json.dumps(plain)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scores": {"a": 0.5, "b": 0.4}, "label": "a", "confidence": 0.5}, "sum to 0.9"),
        ({"scores": {"a": 1.5, "b": -0.5}, "label": "a", "confidence": 1.5}, "not probabilities"),
        ({"scores": {"a": float("nan"), "b": 1.0}, "label": "b", "confidence": 1.0}, "not probabilities"),
        ({"scores": {"a": 0.99999, "b": 0.0}, "label": "a", "confidence": 0.99999}, "not probabilities"),
        ({"scores": {}}, "not probabilities"),
        ({"label": "Ring"}, "label 'Ring'"),
        ({"confidence": 0.9}, "confidence 0.9"),
        ({"confidence": float("nan")}, "confidence nan"),
    ],
)
def test_scores_that_are_no_probabilities(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WaferVLMError, match=message):
        answer(**changes)


def test_to_dict_is_json_and_says_what_was_judged() -> None:
    plain = answer().to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["scores"] == SCORES
    assert plain["timing_ms"] == TIMING
    assert (plain["id"], plain["label"], plain["confidence"], plain["locked"]) == (
        "lot1-w3",
        "Edge-Ring",
        0.85,
        True,
    )
    assert (plain["task"], plain["bundle"]) == (WAFER_DEFECTS.digest, "b" * 64)
    assert plain["wafer"]["digest"] == WAFER.digest
    assert plain["wafer"]["fails"] == WAFER.fail_count
    assert (plain["wafer"]["rows"], plain["wafer"]["columns"], plain["wafer"]["lot"]) == (21, 23, "lot1")
    assert answer(wafer=None, image=np.zeros((8, 8, 3), np.uint8)).to_dict()["wafer"] is None


def test_repr_is_one_line() -> None:
    assert repr(answer()) == "<Prediction 'lot1-w3' Edge-Ring 0.850 in 4.5 ms>"
    assert repr(answer(id="", timing_ms={}, locked=False)) == "<Prediction Edge-Ring 0.850, outside the lock>"
    assert "\n" not in repr(answer(id="a\nb"))


def test_equality_leaves_timing_out_and_copies_are_equal() -> None:
    prediction = answer()
    assert prediction == answer(timing_ms={"total": 9.0})
    assert hash(prediction) == hash(answer())
    assert prediction != answer(wafer=None)
    assert prediction != answer(locked=False)
    pictured = answer(wafer=None, image=np.zeros((8, 8, 3), np.uint8))
    assert pictured == answer(wafer=None, image=np.ones((8, 8, 3), np.uint8))
    for copied in (pickle.loads(pickle.dumps(prediction)), copy.deepcopy(prediction)):
        assert copied == prediction
        assert copied.timing_ms == prediction.timing_ms
    assert dataclasses.replace(prediction, id="x").id == "x"


def wafer_part(picture: Image.Image) -> Image.Image:
    return picture.crop((32, 32, 32 + 384, 32 + 384))


def test_plot_shows_the_wafer_without_blur(tmp_path: Path) -> None:
    picture = answer().plot()
    assert picture.mode == "RGB"
    assert picture.width == 960
    wafer_part(picture).save(tmp_path / "w.png")
    shown = read_image(tmp_path / "w.png", RenderSpec(384, 384))
    assert isinstance(shown, WaferMap)
    assert np.array_equal(shown.dies, WAFER.dies)


def bars(picture: Image.Image, rows: int) -> list[int]:
    """The length in pixels of each bar, filled with the colours of bars."""
    pixels = np.asarray(picture)[148:, 440:]
    filled = (pixels == RECIPE_PALETTE[1]).all(axis=2) | (pixels == (160, 196, 195)).all(axis=2)
    return [int(filled[34 * row + 17].sum()) for row in range(rows)]


def test_plot_draws_a_bar_for_every_label_as_long_as_its_score() -> None:
    lengths = bars(answer().plot(), 9)
    assert lengths.index(max(lengths)) == 3
    whole = max(lengths) / 0.85
    for length, score in zip(lengths, SCORES.values(), strict=True):
        assert length == pytest.approx(whole * score, abs=2)
    many = {f"label {i}": 1 / 40 for i in range(40)}
    picture = answer(scores=many, label="label 7", confidence=1 / 40).plot()
    assert all(length > 0 for length in bars(picture, 40))


def test_plot_tells_label_id_and_lock_apart() -> None:
    plain = np.asarray(answer().plot())
    for changes in (
        {"locked": False},
        {"id": "another"},
        {"timing_ms": {"total": 123.0}},
        {"label": "none", "confidence": 0.01},
        {"wafer": WAFER.transformed(1)},
    ):
        other = np.asarray(answer(**changes).plot())
        assert other.shape == plain.shape
        assert (other != plain).any()


@pytest.mark.parametrize("label", ["W" * 300, "欠陥", "é – ü", "a"])
def test_plot_takes_any_label(label: str) -> None:
    picture = answer(scores={label: 0.75, "none": 0.25}, label=label, confidence=0.75, id="x" * 500).plot()
    margin = np.asarray(picture)[:, 929:]
    assert (margin == 255).all(), "nothing is drawn beyond the margin"


def test_plot_of_a_foreign_image_and_of_nothing() -> None:
    image = np.random.default_rng(2).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    picture = wafer_part(answer(wafer=None, image=image, locked=False).plot())
    assert np.array_equal(np.asarray(picture)[3::6, 4::8], image)
    assert answer(wafer=None).plot().width == 960


def test_notebooks_show_the_plot() -> None:
    with Image.open(io.BytesIO(answer()._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.asarray(picture), np.asarray(answer().plot()))


def test_the_plot_keeps_a_failing_die_of_a_large_wafer() -> None:
    dies = np.ones((1000, 1000), np.uint8)
    dies[500, 333] = 2
    shown = np.asarray(wafer_part(answer(wafer=WaferMap(dies)).plot()))
    assert (shown == RECIPE_PALETTE[2]).all(axis=2).sum() == 1
    assert np.array_equal(shown, render(dies, RenderSpec(384, 384)))
