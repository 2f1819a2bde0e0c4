"""Claims about planted wafers against their generator's truth, with the tolerances of ``wafervlm.claims``.

What is decided, and what the truth does not say:

    share, count, clear          decided on every kind
    zone, clock, quadrant, side  decided where there is a place, contradicted elsewhere; not at the border of
                                 the center zone, nor quadrants of open rings
    span                         decided on arcs, contradicted without a place; not on clusters and lines
    pattern, clusters            decided; not patterns of scatter and repeats, nor clusters of full wafers
    ring, line                   decided; not whether an arc is a line, or a curve an arc
    size, extent, density        decided on clusters, arcs and lines; not on rings and full wafers
    scatter, background          decided; not the background of scatter, full wafers and repeats
    repeat                       decided on every kind
    symmetry                     never
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from benchmarks.assessment.planted_places import EVERYWHERE, LINES, PLACED, RINGS, Planted, hour_of
from benchmarks.assessment.planted_shapes import SHAPES
from benchmarks.planted import Grid, Truth
from wafervlm.claims import Checked, Claim, Verdict
from wafervlm.claims.check_places import (
    CLEAR_PART,
    CLEAR_SHARE,
    NEAR_CONTRAST,
    NEARLY_OUT,
    SIDES,
    ZONE_SLACK,
    within_count,
    within_share,
)
from wafervlm.claims.measured import hours_apart

Told = bool | None  # None: the truth does not say
Decides = Callable[[Claim, Planted], Told]

_VERDICTS = {True: Verdict.SUPPORTED, False: Verdict.CONTRADICTED, None: Verdict.UNTOLD}
_QUADRANTS = {
    "upper left": (9, 10, 11, 12),
    "upper right": (12, 1, 2, 3),
    "lower left": (6, 7, 8, 9),
    "lower right": (3, 4, 5, 6),
}


class PlantedRuler:
    """The truth about one planted wafer of ``dies`` (H, W) uint8."""

    def __init__(self, dies: Grid, truth: Truth) -> None:
        self.planted = Planted(dies, truth)
        self.statements: tuple[Claim, ...] = tuple(_statements(self.planted))

    @property
    def hour(self) -> int | None:
        return self.planted.hour

    @property
    def zoned(self) -> bool:
        return self.planted.kind not in EVERYWHERE

    @property
    def ring(self) -> bool:
        return self.planted.kind in RINGS

    def check(self, claims: Iterable[Claim]) -> list[Checked]:
        """Each claim with its verdict; what the truth does not decide cannot be told."""
        return [self._checked(claim) for claim in claims]

    def _checked(self, claim: Claim) -> Checked:
        told = _DECIDED[claim.kind](claim, self.planted) if claim.kind in _DECIDED else None
        if told is not None and claim.negated:
            told = not told
        return Checked(claim, _VERDICTS[told], f"planted was: {self.planted.kind}")


def _share(claim: Claim, planted: Planted) -> Told:
    said, measured = claim.value, 100 * planted.share
    if not isinstance(said, tuple):
        return within_share(float(cast(float, said)), measured)
    scope, percent = said
    if scope in planted.zones:
        return within_share(percent, 100 * planted.zones[scope])
    return bool(measured >= percent if scope == "above" else measured <= percent)


def _count(claim: Claim, planted: Planted) -> Told:
    return within_count(claim.plain, int(planted.failing.sum()))


def _clear(claim: Claim, planted: Planted) -> Told:
    return planted.zones[claim.plain] <= max(CLEAR_SHARE, CLEAR_PART * planted.share)


def _zone(claim: Claim, planted: Planted) -> Told:
    if planted.kind in EVERYWHERE:
        return False
    if claim.subject is None:
        highest = max(planted.zones.values())
        return highest >= NEARLY_OUT * planted.share and planted.zones[claim.plain] >= NEAR_CONTRAST * highest
    there = _there(claim, planted)
    if not there:
        return there
    at_rim = claim.plain == "edge" and planted.reaches_rim
    return at_rim or _zone_within(planted, claim.plain)


def _zone_within(planted: Planted, zone: str) -> bool:
    low, high = {"center": (0.0, 0.35), "middle": (0.35, 0.72), "edge": (0.72, 2.0)}[zone]
    return low - ZONE_SLACK <= planted.radius < high + ZONE_SLACK


def _clock(claim: Claim, planted: Planted) -> Told:
    return _turned(claim, planted, lambda hour: hours_apart(hour, claim.plain) <= 1)


def _quadrant(claim: Claim, planted: Planted) -> Told:
    if claim.subject is None and planted.kind == "open ring":
        return None
    return _turned(claim, planted, lambda hour: hour in _QUADRANTS[claim.plain])


def _side(claim: Claim, planted: Planted) -> Told:
    return _turned(claim, planted, lambda hour: hours_apart(hour, SIDES[claim.plain]) <= 2)


def _span(claim: Claim, planted: Planted) -> Told:
    if planted.kind == "arc" and claim.subject in (None, "largest cluster", "cluster"):
        ends = (planted.turn - planted.truth.extent / 2, planted.turn + planted.truth.extent / 2)
        return all(_degrees_apart(30 * said, end) <= 45 for said, end in zip(claim.plain, ends, strict=True))
    return None if planted.kind in PLACED and _there(claim, planted) else False


def _degrees_apart(first: float, second: float) -> float:
    apart = (first - second) % 360
    return min(apart, 360 - apart)


def _turned(claim: Claim, planted: Planted, holds: Callable[[int], bool]) -> Told:
    """A place round the clock, of what is planted or of the gap of a ring."""
    if claim.subject == "gap":
        return planted.kind == "open ring" and holds(hour_of(planted.truth.angle))
    if planted.kind not in PLACED:
        return False
    there = _there(claim, planted)
    if not there:
        return there
    right = holds(hour_of(planted.turn))
    if abs(planted.radius - 0.35) <= ZONE_SLACK:
        return None if right else False
    return right and planted.hour is not None


def _there(claim: Claim, planted: Planted) -> Told:
    """Whether the structure that a claim names was planted: one is, so there is no second."""
    match claim.subject:
        case None | "pattern":
            return True
        case "largest cluster" | "cluster":
            return planted.kind in PLACED
        case "line":
            return None if planted.kind == "arc" else planted.kind in LINES
        case "ring":
            return planted.kind in RINGS
        case _:
            return False


_DECIDED: dict[str, Decides] = {
    "share": _share,
    "count": _count,
    "clear": _clear,
    "zone": _zone,
    "clock": _clock,
    "quadrant": _quadrant,
    "side": _side,
    "span": _span,
    **SHAPES,
}


def _statements(planted: Planted) -> Iterator[Claim]:
    """What is worth saying of a planted wafer."""
    truth, kind = planted.truth, planted.kind
    yield Claim("share", round(100 * planted.share))
    if kind == "none":
        yield Claim("pattern", "any", negated=True)
    if kind == "repeat":
        yield Claim("repeat", truth.period)
    if kind in ("scatter", "full"):
        yield Claim("scatter", "spread")
    if kind in EVERYWHERE:
        yield from (Claim(absent, "any", negated=True) for absent in ("ring", "line"))
        return
    yield Claim("zone", max(planted.zones, key=lambda zone: planted.zones[zone]))
    if planted.hour is not None:
        yield Claim("clock", planted.hour)
    yield from _shape_statements(planted)
    yield Claim("background", "few" if planted.background <= 0.035 else "some")


def _shape_statements(planted: Planted) -> Iterator[Claim]:
    truth, kind = planted.truth, planted.kind
    value: Any
    if kind in RINGS:
        form = "open" if kind == "open ring" else "closed"
        yield Claim("ring", (form, 5 * round(20 * truth.radius)))
        if form == "open":
            yield Claim("clock", ("gap", hour_of(truth.angle)))
        return
    if kind == "arc":
        yield Claim("ring", "arc")
        value = [hour_of(planted.turn + end * truth.extent / 2) for end in (-1, 1)]
        yield Claim("span", tuple(value))
    elif kind in LINES:
        yield Claim("line", "curved" if truth.bend else "straight")
        yield Claim("extent", ("line", 5 * round(20 * planted.extent)))
    yield Claim("clusters", 1)
    yield Claim("size", len(truth.dies))
