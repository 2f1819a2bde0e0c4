"""Descriptions checked against dies whose pattern is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wafervlm.claims import check, extract
from wafervlm.errors import UsageError
from wafervlm.geometry import measure
from wafervlm.wafermap import WaferMap
from wafervlm.words.checking import best_answer, checked, lines
from wafervlm.words.description import Description

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def wafer() -> WaferMap:
    """One dense cluster at 3 o'clock, in the middle zone."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, 41),) * 2, indexing="ij")
    dies = np.where(np.hypot(x, y) <= 1.01, 1, 0)
    dies[np.hypot(x - 0.55, y) < 0.2] = 2
    return WaferMap(dies, id="w1")


def said(wafer: WaferMap | None, text: str) -> Description:
    return Description(text, "Where?", (1, 2), "stop", 9, wafer=wafer)


TRUE = "The pattern lies at 3 o'clock."
FALSE = "There is a closed ring."


def test_what_the_dies_contradict_is_struck_and_told(wafer: WaferMap) -> None:
    found = checked(said(wafer, f"{TRUE} {FALSE} The causes are unknown."))
    assert found.text == f"{TRUE} The causes are unknown."
    assert found.said == f"{TRUE} {FALSE} The causes are unknown."
    assert [each.claim.kind for each in found.struck] == ["ring"]
    assert found.claims is not None
    assert [each.claim.kind for each in found.claims] == ["clock"]
    assert found.text[found.claims[0].claim.start : found.claims[0].claim.end] == found.claims[0].claim.text
    assert len(list(lines(found))) == 2


def test_no_contradiction_is_left_whatever_was_said(wafer: WaferMap) -> None:
    text = (
        "1. Spatial distribution: 90 percent of the dies fail, mostly in the edge zone at 9 o'clock. "
        "The second cluster lies at 2 o'clock.\n2. Morphology: a closed ring, three clusters, a vertical "
        "line and a sparse pattern that is 5 percent of the diameter long.\n"
        "3. Root-cause candidates: candidate: particle fall-on."
    )
    found = checked(said(wafer, text))
    left = check(extract(found.text), measure(wafer.dies))
    assert found.struck
    assert not any(each.contradicted for each in left)
    assert "candidate: particle fall-on" in found.text


def test_an_image_without_dies_is_left_unchecked() -> None:
    found = checked(said(None, FALSE))
    assert found.claims is None
    assert found.text == FALSE
    with pytest.raises(UsageError, match="check=True"):
        found.plot()


def test_answers_are_drawn_anew_until_nothing_is_struck(wafer: WaferMap) -> None:
    texts, asked = iter([FALSE, f"{TRUE} {FALSE}", TRUE, "never asked"]), []

    def answer(temperature: float, seed: int | None) -> Description:
        asked.append((temperature, seed))
        return said(wafer, next(texts))

    found = best_answer(answer, check=True, redraws=5, temperature=0.0, seed=None)
    assert found.text == TRUE
    assert not found.struck
    assert asked == [(0.0, None), (0.7, 1), (0.7, 2)]


def test_of_answers_that_all_lie_the_one_that_says_more_is_taken(wafer: WaferMap) -> None:
    texts = iter([FALSE, f"{TRUE} {FALSE}"])
    found = best_answer(
        lambda *_: said(wafer, next(texts)), check=True, redraws=1, temperature=0.0, seed=None
    )
    assert found.text == TRUE
    with pytest.raises(UsageError, match="redraws"):
        best_answer(lambda *_: said(wafer, TRUE), check=True, redraws=-1, temperature=0.0, seed=None)


def test_unchecked_it_stays_as_said(wafer: WaferMap) -> None:
    found = best_answer(lambda *_: said(wafer, FALSE), check=False, redraws=3, temperature=0.0, seed=None)
    assert (found.text, found.claims, found.struck) == (FALSE, None, ())


def test_it_can_be_written_as_json(wafer: WaferMap) -> None:
    values = json.loads(json.dumps(checked(said(wafer, f"{TRUE} {FALSE}")).to_dict()))
    assert values["claims"][0]["verdict"] == "supported"
    assert values["struck"][0]["verdict"] == "contradicted"
    assert values["claims"][0]["dies"]


def test_the_picture_marks_the_dies_that_bear_it_out(wafer: WaferMap) -> None:
    picture = np.asarray(checked(said(wafer, f"{TRUE} {FALSE}")).plot())
    marked = (picture == (213, 94, 0)).all(axis=2)
    # The wafer takes 384 pixels from (32, 32) on; of its 41x41 dies those of the cluster are marked.
    shown = marked[32:416, 32:416]
    share = (wafer.dies == 2).mean()
    assert shown.mean() == pytest.approx(share, rel=0.05)
    rows, columns = np.nonzero(shown)
    assert columns.mean() / 384 == pytest.approx(0.5 + 0.55 / 2, abs=0.02)
    assert rows.mean() / 384 == pytest.approx(0.5, abs=0.02)
    assert marked[:, 416:].any()


def test_a_wafer_with_a_mark_is_turned_upright() -> None:
    dies = np.ones((5, 7), int)
    dies[0, 3] = 2
    wafer = WaferMap(dies, orientation="top")
    assert wafer.upright.orientation == "bottom"
    assert wafer.upright.dies[-1, 3] == 2
    plain = WaferMap(dies)
    assert plain.upright is plain
