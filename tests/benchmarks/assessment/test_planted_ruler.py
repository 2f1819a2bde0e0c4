from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from benchmarks.assessment.planted_ruler import PlantedRuler
from benchmarks.planted import KINDS, Truth, plant
from tests.conftest import ROOT
from train.vqa.statements import altered
from wafervlm.claims import Claim, Verdict, extract, tell

SHAPE = (40, 40)


def ruler(kind: str, seed: int = 0, noise: float | None = None) -> PlantedRuler:
    return PlantedRuler(*plant(kind, np.random.default_rng(seed), SHAPE, noise))


def drawn(failing: np.ndarray, truth: Truth) -> PlantedRuler:
    """A wafer of 40 x 40 dies, all on the wafer but the corners, of a make that a test writes."""
    y, x = (np.mgrid[:40, :40] - 19.5) / 20
    return PlantedRuler(np.where(x * x + y * y <= 1, 1 + failing, 0).astype(np.uint8), truth)


def at_five() -> PlantedRuler:
    """A disc at 5 o'clock, 0.85 of the radius out."""
    y, x = (np.mgrid[:40, :40] - 19.5) / 20
    turn = np.radians(150)
    disc = np.hypot(x - 0.85 * np.sin(turn), y + 0.85 * np.cos(turn)) <= 0.14
    disc &= x * x + y * y <= 1
    place = {"x": float(x[disc].mean()), "y": float(y[disc].mean())}
    return drawn(disc, Truth("cluster", np.argwhere(disc), 0.0, **place))


def test_it_knows_nothing_of_the_geometry_it_judges() -> None:
    program = "import sys, benchmarks.assessment.planted_ruler; print('wafervlm.geometry' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_worth_saying_is_true_and_its_opposite_false(kind: str) -> None:
    verdicts = []
    for seed in range(8):
        judged = ruler(kind, seed)
        said = judged.check(extract(tell(judged.statements)))
        assert [item.claim for item in said] == list(judged.statements)
        verdicts += [item.verdict for item in said]
        denied = [Claim(c.kind, c.value, negated=not c.negated) for c in judged.statements]
        pairs = zip(said, judged.check(denied), strict=True)
        assert all(a.supported == b.contradicted for a, b in pairs)
    assert verdicts.count(Verdict.CONTRADICTED) == 0
    # A place at the border of the center zone cannot be told.
    assert verdicts.count(Verdict.UNTOLD) <= 3


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The pattern lies at 5 o'clock.", Verdict.SUPPORTED),
        ("The pattern lies at 6 o'clock.", Verdict.SUPPORTED),
        ("The pattern lies at 7 o'clock.", Verdict.CONTRADICTED),
        ("The pattern does not lie at 11 o'clock.", Verdict.SUPPORTED),
        ("The largest cluster lies at 5 o'clock.", Verdict.SUPPORTED),
        ("The second cluster lies at 5 o'clock.", Verdict.CONTRADICTED),
        ("The line lies at 5 o'clock.", Verdict.CONTRADICTED),
        ("The failing dies lie mostly in the edge zone.", Verdict.SUPPORTED),
        ("The failing dies lie mostly in the middle zone.", Verdict.CONTRADICTED),
        ("The pattern lies in the edge zone.", Verdict.SUPPORTED),
        ("The pattern lies in the center zone.", Verdict.CONTRADICTED),
        ("The center zone is clear.", Verdict.SUPPORTED),
        ("The pattern lies in the lower right quadrant.", Verdict.SUPPORTED),
        ("The pattern lies in the upper left quadrant.", Verdict.CONTRADICTED),
        ("The pattern lies on the bottom side.", Verdict.SUPPORTED),
        ("There is one cluster.", Verdict.SUPPORTED),
        ("There are two clusters.", Verdict.CONTRADICTED),
        ("The largest cluster is dense.", Verdict.SUPPORTED),
        ("There is no ring.", Verdict.SUPPORTED),
        ("There is a straight line.", Verdict.CONTRADICTED),
        ("Few failing dies lie elsewhere.", Verdict.SUPPORTED),
        ("Many failing dies lie elsewhere.", Verdict.CONTRADICTED),
        ("The pattern repeats.", Verdict.CONTRADICTED),
        ("The pattern has mirror symmetry.", Verdict.UNTOLD),
    ],
)
def test_a_disc_at_five_o_clock(text: str, verdict: Verdict) -> None:
    (found,) = at_five().check(extract(text))
    assert found.verdict is verdict


@pytest.mark.parametrize("kind", ["closed ring", "open ring", "annulus", "scatter", "full", "none", "repeat"])
def test_what_has_no_place_is_given_none(kind: str) -> None:
    judged = ruler(kind, 3)
    assert judged.hour is None
    for text in ("The pattern lies at 5 o'clock.", "The pattern reaches from 4 to 6 o'clock."):
        (found,) = judged.check(extract(text))
        assert found.contradicted


def test_the_gap_of_a_ring_has_a_place() -> None:
    judged = ruler("open ring", 1)
    hour = round(judged.planted.truth.angle / 30) % 12 or 12
    right, wrong = (f"The gap lies at {at} o'clock." for at in (hour, (hour + 5) % 12 + 1))
    assert [found.supported for found in judged.check(extract(f"{right} {wrong}"))] == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_changed_figures_are_mostly_found_out(kind: str) -> None:
    judged = ruler(kind, 5)
    changed = [claim for one in judged.statements for claim in altered(one)]
    found = judged.check(changed)
    told = [item for item in found if item.verdict is not Verdict.UNTOLD]
    # Neighbouring hours and sizes within the tolerance are right as well.
    assert sum(item.contradicted for item in told) >= 0.7 * len(told)


def test_zones_by_hand() -> None:
    y, x = (np.mgrid[:40, :40] - 19.5) / 20
    radius = np.hypot(x, y)
    failing = (radius < 0.35) & (np.arange(40) % 2 == 0)
    judged = drawn(failing, Truth("cluster", np.argwhere(failing), 0.0))
    (found,) = judged.check([Claim("share", ("center", 50))])
    assert found.supported
    assert judged.planted.zones["edge"] == 0
    inside = failing[radius < 0.35].mean()
    assert judged.planted.zones["center"] == pytest.approx(inside)
