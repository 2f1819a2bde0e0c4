"""Checks of shares and places."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from wafervlm.claims.claim import Claim
from wafervlm.claims.measured import (
    PLACELESS,
    Dies,
    Found,
    hours_apart,
    joined,
    judged,
    missing,
    named,
    percent,
    untold,
)

if TYPE_CHECKING:
    from wafervlm.geometry.types import Geometry

# What a reader tells apart: 2 points where few dies fail, otherwise 15 % of the share.
SHARE_POINTS, SHARE_PART = 2.0, 0.15
# Dies that a reader miscounts.
COUNT_DIES, COUNT_PART = 3, 0.2
# Zones whose contrasts are this near are equally dense to a reader.
NEAR_CONTRAST = 0.9
# A zone stands out from 1.25 on; to a reader one as near to that as NEAR_CONTRAST does too.
NEARLY_OUT = 1.125
# A structure whose middle lies this near to the border of two zones lies in both.
ZONE_SLACK = 0.05
# A clear zone: next to nothing fails, or a third of what fails over the whole wafer.
CLEAR_SHARE, CLEAR_PART = 0.02, 1 / 3
# Neighbouring clock sectors touch: a cluster on their border is in either.
HOURS_APART = 1
# A quadrant stands out where its share is this many times the overall share.
QUADRANT_CONTRAST = 1.2
SIDES = {"top": 12, "right": 3, "bottom": 6, "left": 9}
_ZONES = ("center", "middle", "edge")
_BORDERS = {"center": (0.0, 0.35), "middle": (0.35, 0.72), "edge": (0.72, 2.0)}
_QUADRANTS = {
    "upper left": (9, 10, 11, 12),
    "upper right": (12, 1, 2, 3),
    "lower left": (6, 7, 8, 9),
    "lower right": (3, 4, 5, 6),
}


def within_share(said: float, measured: float) -> bool:
    """Whether a share said, in percent, is near enough to the one measured."""
    return abs(said - measured) <= max(SHARE_POINTS, SHARE_PART * measured)


def within_count(said: float, measured: float) -> bool:
    """Whether a number of dies said is near enough to the one measured."""
    return abs(said - measured) <= max(COUNT_DIES, COUNT_PART * measured)


def _share(claim: Claim, g: Geometry) -> Found:
    value, measured, where = claim.value, 100 * g.share, "of the dies fail"
    if not isinstance(value, tuple):
        return judged(within_share(cast(float, value), measured), f"{percent(g.share)} {where}")
    scope, said = value
    if scope in _ZONES:
        share = float(g.zones[_ZONES.index(scope)])
        why = f"{percent(share)} of the dies in the {scope} zone fail"
        return judged(within_share(said, 100 * share), why)
    holds = measured >= said if scope == "above" else measured <= said
    return judged(holds, f"{percent(g.share)} {where}")


def _count(claim: Claim, g: Geometry) -> Found:
    return judged(within_count(claim.plain, g.failing), f"{g.failing} dies fail")


def _zone(claim: Claim, g: Geometry) -> Found:
    said: str = claim.plain
    if claim.subject is not None:
        return _of_named(claim, g, lambda s: _in_zone(s, said), lambda s: f"in the {s.zone} zone")
    if not g.failing:
        return judged(False, "no die fails")
    highest = float(max(g.contrast))
    nearly = g.main is not None and highest >= NEARLY_OUT
    if not (g.zone_stands_out or nearly):
        return judged(False, "no zone stands out")
    holds = float(g.contrast[_ZONES.index(said)]) >= NEAR_CONTRAST * highest
    most = _ZONES[int(g.contrast.argmax())]
    why = f"the {most} zone stands out most, {highest:.1f} times the overall share"
    return judged(holds, why, _evidence(g, said))


def _evidence(g: Geometry, zone: str) -> Dies | None:
    structures: list[Any] = [*g.ring_list, *g.clusters]
    return joined([s.dies for s in structures if s.zone == zone])


def _in_zone(structure: Any, zone: str) -> bool:
    low, high = _BORDERS[zone]
    near = low - ZONE_SLACK <= structure.radius < high + ZONE_SLACK
    return near or (zone == "edge" and getattr(structure, "rim", False))


def _clear(claim: Claim, g: Geometry) -> Found:
    share = float(g.zones[_ZONES.index(claim.plain)])
    holds = share <= max(CLEAR_SHARE, CLEAR_PART * g.share)
    return judged(holds, f"{percent(share)} of the dies in the {claim.plain} zone fail")


def _clock(claim: Claim, g: Geometry) -> Found:
    return _placed(claim, g, lambda hour: hours_apart(hour, claim.plain) <= HOURS_APART)


def _quadrant(claim: Claim, g: Geometry) -> Found:
    said: str = claim.plain
    if claim.subject is None and g.main_hour is None and g.failing:
        shares = dict(
            zip(("upper left", "upper right", "lower left", "lower right"), g.quadrants, strict=True)
        )
        holds = shares[said] >= max(QUADRANT_CONTRAST * g.share, NEAR_CONTRAST * max(shares.values()))
        return judged(
            bool(holds), f"{percent(shares[said])} of the dies in the {said} fail, {percent(g.share)} overall"
        )
    return _placed(claim, g, lambda hour: hour in _QUADRANTS[said])


def _side(claim: Claim, g: Geometry) -> Found:
    return _placed(claim, g, lambda hour: hours_apart(hour, SIDES[claim.plain]) <= 2)


def _placed(claim: Claim, g: Geometry, holds: Callable[[int], bool]) -> Found:
    """A place round the clock, of the dominating structure or of the one that is named."""
    if claim.subject == "gap":
        gaps = [ring for ring in g.ring_list if ring.gap_hour is not None]
        hours = [cast(int, ring.gap_hour) for ring in gaps]
        why = f"the gap is at {hours[0]} o'clock" if hours else "no ring has a gap"
        return judged(any(map(holds, hours)), why, joined([ring.dies for ring in gaps]))
    if claim.subject is None or (claim.subject != "line" and g.pattern in PLACELESS):
        if g.main_hour is None:
            return judged(False, _placeless(g))
        why = f"the dominating structure lies at {g.main_hour} o'clock"
        return judged(holds(g.main_hour), why, None if g.main is None else g.main.dies)

    def lies_there(structure: Any) -> bool:
        return structure.zone != "center" and holds(structure.hour)

    return _of_named(claim, g, lies_there, _position)


def _position(structure: Any) -> str:
    return "in the center zone" if structure.zone == "center" else f"at {structure.hour} o'clock"


def _placeless(g: Geometry) -> str:
    if g.pattern in ("none", "scatter"):
        return "no structure stands out"
    word = {"full": "nearly all dies fail", "ring": "a ring goes round the wafer",
            "annulus": "an annulus goes round the wafer"}  # fmt: skip
    return word.get(g.pattern, "the dominating structure lies in the center zone")


def _of_named(claim: Claim, g: Geometry, holds: Callable[[Any], bool], where: Callable[[Any], str]) -> Found:
    subject = claim.subject
    structures = named(subject, g)
    if not structures:
        return missing(subject, g)
    right = [s for s in structures if holds(s)]
    name = f"the {subject}" if len(structures) == 1 else f"the largest {subject}"
    return judged(
        bool(right), f"{name} lies {where((right or structures)[0])}", joined([s.dies for s in right])
    )


def _span(claim: Claim, g: Geometry) -> Found:
    first, last = claim.plain
    if claim.subject is None and (g.pattern in PLACELESS or g.main_hour is None):
        return judged(False, _placeless(g))
    subject = claim.subject or "largest cluster"
    if claim.subject is None and g.main is not None and not hasattr(g.main, "first_hour"):
        line = next((x for x in g.lines if x is g.main), None)
        if line is None:
            return untold("the hours of the dominating structure are not measured")
        clusters: list[Any] = [g.clusters[line.cluster]]
    elif claim.subject is None:
        clusters = [g.main]
    else:
        if g.pattern in PLACELESS:
            return judged(False, _placeless(g))
        clusters = named(subject, g)
    if not clusters:
        return missing(subject, g)
    right = [
        c for c in clusters
        if hours_apart(c.first_hour, first) <= HOURS_APART and hours_apart(c.last_hour, last) <= HOURS_APART
    ]  # fmt: skip
    shown = (right or clusters)[0]
    why = f"it covers {shown.first_hour} to {shown.last_hour} o'clock"
    return judged(bool(right), why, joined([c.dies for c in right]))


PLACES: dict[str, Callable[[Claim, Any], Found]] = {
    "share": _share,
    "count": _count,
    "zone": _zone,
    "clear": _clear,
    "clock": _clock,
    "span": _span,
    "quadrant": _quadrant,
    "side": _side,
}
