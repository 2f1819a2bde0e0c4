"""Claims against wafers of known make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.wafervlm.claims.drawing import DRAWN, MEASURED, spot, wafer
from wafervlm.claims import KINDS, Claim, Verdict, check, extract, state
from wafervlm.claims.check import _CHECKS
from wafervlm.claims.check_places import NEAR_CONTRAST, NEARLY_OUT
from wafervlm.geometry import ZONES, measure
from wafervlm.geometry.summary import STANDS_OUT
from wafervlm.wafermap import FAIL

YES, NO, OPEN = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.UNTOLD


@pytest.mark.parametrize(
    ("wafer", "sentence", "verdict"),
    [
        ("empty", "No dies fail.", YES),
        ("empty", "The failing dies lie mostly at the edge.", NO),
        ("empty", "The failing dies stand alone.", NO),
        ("empty", "The pattern lies at 5 o'clock.", NO),
        ("empty", "The largest cluster has 4 dies.", NO),
        ("none", "3 percent of the dies fail.", YES),
        ("none", "8 percent of the dies fail.", NO),
        ("none", "No pattern stands out.", YES),
        ("none", "The failing dies stand alone.", YES),
        ("none", "There is no ring and no line.", YES),
        ("none", "The pattern is at 12 o'clock.", NO),
        ("scatter", "The failing dies are spread over the whole wafer.", YES),
        ("scatter", "The failing dies stand alone.", NO),
        ("full", "All dies fail.", YES),
        ("full", "More than 90 percent of the dies fail.", YES),
        ("full", "Less than 90 percent of the dies fail.", NO),
        ("full", "The pattern is at 3 o'clock.", NO),
        ("ring", "A closed ring lies at 94 percent of the radius.", YES),
        ("ring", "A closed ring lies at 70 percent of the radius.", NO),
        ("ring", "There is an open ring.", NO),
        ("ring", "There is no ring.", NO),
        ("ring", "The failing dies lie mostly in the edge zone.", YES),
        ("ring", "The failing dies do not lie mostly in the center zone.", YES),
        ("ring", "The center is clear.", YES),
        ("ring", "The edge zone is clear.", NO),
        ("ring", "The pattern lies at 6 o'clock.", NO),
        ("ring", "The pattern reaches from 4 to 6 o'clock.", NO),
        ("ring", "The pattern is 50 percent of the diameter long.", OPEN),
        ("ring", "The pattern is symmetric.", YES),
        ("gap", "The ring is open, with a gap at 3 o'clock.", YES),
        ("gap", "The gap is at 9 o'clock.", NO),
        ("annulus", "A ring lies at half of the wafer, at 50 percent of the radius.", YES),
        ("annulus", "The failing dies lie mostly in the middle zone.", YES),
        ("arc", "The failing dies form an arc.", YES),
        ("arc", "There is no ring.", YES),
        ("arc", "The pattern reaches from 4 to 6 o'clock.", YES),
        ("arc", "The pattern reaches from 6 to 4 o'clock.", NO),
        ("arc", "The pattern reaches from 8 to 10 o'clock.", NO),
        ("center", "The failing dies lie mostly in the center zone.", YES),
        ("center", "The pattern lies at 5 o'clock.", NO),
        ("spot", "The pattern lies at 6 o'clock.", YES),
        ("spot", "The pattern lies at 7 o'clock.", NO),
        ("spot", "The pattern does not lie at 5 o'clock.", NO),
        ("spot", "The pattern lies in the lower right.", YES),
        ("spot", "The pattern lies in the upper right.", NO),
        ("spot", "It lies on the right side.", YES),
        ("spot", "It lies on the left side.", NO),
        ("spot", "There is one cluster.", YES),
        ("spot", "There are two clusters.", NO),
        ("spot", "The cluster is dense.", YES),
        ("spot", "The cluster is sparse.", NO),
        ("spot", "The second cluster lies at 5 o'clock.", NO),
        ("spot", "Few failing dies lie elsewhere.", YES),
        ("spot", "Many failing dies lie elsewhere.", NO),
        ("spot", "The pattern is symmetric.", OPEN),
        ("spot", "The pattern has rotational symmetry.", NO),
        ("spot", "The pattern has mirror symmetry.", YES),
        ("spots", "There are two clusters.", YES),
        ("spots", "The largest cluster lies at 5 o'clock.", YES),
        ("spots", "The largest cluster lies at 9 o'clock.", NO),
        ("spots", "The second cluster lies at 9 o'clock.", YES),
        ("spots", "A cluster lies at 9 o'clock, in the edge zone.", YES),
        ("spots", "One of the clusters lies at 12 o'clock.", NO),
        ("line", "A straight line runs from lower left to upper right.", YES),
        ("line", "The line is falling.", NO),
        ("line", "The line is horizontal.", NO),
        ("line", "The line is curved.", NO),
        ("line", "There is no line.", NO),
        ("line", "The line is 70 percent of the diameter long.", YES),
        ("line", "The line is 20 percent of the diameter long.", NO),
        ("line", "The failing dies repeat every 3 rows.", NO),
    ],
)
def test_verdict(wafer: str, sentence: str, verdict: Verdict) -> None:
    claims = extract(sentence)
    checked = check(claims, MEASURED[wafer])
    assert claims and [item.verdict for item in checked] == [verdict] * len(claims), checked
    assert all(item.why and item.why[-1] != "." for item in checked)


def test_every_kind_is_checked() -> None:
    assert set(_CHECKS) == set(KINDS)


def test_the_reason_holds_the_measured_value() -> None:
    (item,) = check(extract("The pattern lies at 11 o'clock."), MEASURED["spot"])
    assert item.why == "the dominating structure lies at 5 o'clock"
    assert item.dies is None


@pytest.mark.parametrize(
    ("wafer", "sentence"),
    [
        ("spot", "The pattern lies at 5 o'clock."),
        ("ring", "There is a closed ring."),
        ("line", "There is a line."),
        ("spots", "There are two clusters."),
    ],
)
def test_evidence_is_failing_dies(wafer: str, sentence: str) -> None:
    (item,) = check(extract(sentence), MEASURED[wafer])
    assert item.dies is not None and len(item.dies) > 10
    assert (DRAWN[wafer][tuple(item.dies.T)] == FAIL).mean() > 0.95


def test_clusters_beyond_those_listed_cannot_be_told() -> None:
    spots = MEASURED["spots"]
    many = replace(spots, clusters=spots.clusters[:1] * 8)
    (item,) = check(extract("The third cluster lies at 5 o'clock."), many)
    assert item.verdict is YES
    (item,) = check(extract("There are three or more clusters."), many)
    assert item.verdict is YES


@pytest.mark.parametrize(("said", "verdict"), [(8, YES), (7, NO), (12, YES), (13, NO)])
def test_share_within_two_points(said: int, verdict: Verdict) -> None:
    geometry = replace(MEASURED["spot"], share=0.1)
    (item,) = check(extract(f"{said} percent of the dies fail."), geometry)
    assert item.verdict is verdict
    assert item.why == "10 percent of the dies fail"


def test_where_no_zone_stands_out_the_pattern_has_its_zone() -> None:
    geometry = measure(wafer(spot(6, 0.5, 0.15), 0.15))
    assert not geometry.zone_stands_out and geometry.main is not None
    found = check([Claim("zone", ("pattern", zone)) for zone in ZONES], geometry)
    assert [item.supported for item in found] == [False, True, False]
    assert found[1].why == "the pattern lies in the middle zone"
    assert found[1].dies is not None and len(found[1].dies) == geometry.main.size
    assert Claim("zone", ("pattern", "middle")) in state(geometry)


@pytest.mark.parametrize(("highest", "holds"), [(1.24, True), (1.13, True), (1.12, False)])
def test_a_zone_that_nearly_stands_out_does_to_a_reader(highest: float, holds: bool) -> None:
    assert pytest.approx(NEAR_CONTRAST * STANDS_OUT) == NEARLY_OUT
    contrast = np.array([0.9, 1.0, highest])
    spot = replace(MEASURED["spot"], contrast=contrast, zone_stands_out=False)
    claims = [Claim("zone", "edge"), Claim("zone", "center")]
    assert [item.supported for item in check(claims, spot)] == [holds, False]
    # Without a structure the failing dies may lie there by chance.
    none = replace(MEASURED["none"], contrast=contrast, zone_stands_out=False)
    assert not any(item.supported for item in check(claims, none))
