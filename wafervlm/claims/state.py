"""What is true of a geometry and worth saying."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wafervlm.claims.check import check
from wafervlm.claims.check_structures import DIRECTIONS, turned
from wafervlm.claims.claim import Claim, Value
from wafervlm.claims.measured import PLACELESS, counted_clusters

if TYPE_CHECKING:
    from wafervlm.geometry.types import Geometry

MOST, MOST_OF_NOTHING = 8, 4
# Well inside the ranges of check, so that a statement is beyond doubt.
DENSE, SPARSE = 0.6, 0.5
FEW, SOME = 0.035, 0.11


def state(geometry: Geometry) -> tuple[Claim, ...]:
    """True statements about a wafer by weight: how much fails and where, its structures, the rest.

    At most MOST, and MOST_OF_NOTHING where no pattern stands out; figures are rounded as a reader would, and
    ``check`` supports every one.
    """
    most = MOST_OF_NOTHING if geometry.pattern in ("none", "scatter") else MOST
    claims = list(dict.fromkeys(_statements(geometry)))
    checked = check(claims, geometry)
    # At the border of two tolerances a rounded figure may just miss: it is left out then.
    return tuple(item.claim for item in checked if item.supported)[:most]


def _statements(g: Geometry) -> Iterator[Claim]:
    yield _claim("share", _round_share(100 * g.share))
    if g.pattern == "none":
        yield _claim("pattern", "any", negated=True)
        yield from _of_nothing(g)
        return
    if g.pattern in ("scatter", "full"):
        yield _claim("scatter", "spread")
        yield from _of_nothing(g)
        return
    if g.main_zone is not None:
        yield _claim("zone", g.main_zone if g.zone_stands_out else ("pattern", g.main_zone))
    yield from _places(g)
    yield from _structures(g)
    yield _claim("background", "few" if g.background <= FEW else "some" if g.background <= SOME else "many")
    yield from _absent(g)
    yield _claim("clear", next((z for z in ("center", "middle", "edge") if z != g.main_zone), "center"))


def _of_nothing(g: Geometry) -> Iterator[Claim]:
    yield _claim("scatter", "alone")
    if not g.ring_list:
        yield _claim("ring", "any", negated=True)
    if not g.clusters:
        yield _claim("clusters", 0)
    if not g.lines:
        yield _claim("line", "any", negated=True)


def _places(g: Geometry) -> Iterator[Claim]:
    if g.main_hour is not None:
        yield _claim("clock", g.main_hour)
        main: Any = g.main
        if getattr(main, "arc", False) and main.first_hour != main.last_hour:
            yield _claim("span", (main.first_hour, main.last_hour))


def _structures(g: Geometry) -> Iterator[Claim]:
    if g.ring_list:
        ring = g.ring_list[0]
        yield _claim("ring", ("closed" if ring.closed else "open", 5 * round(20 * ring.radius)))
        if ring.gap_hour is not None:
            yield _claim("clock", ("gap", ring.gap_hour))
    if g.pattern == "arc":
        yield _claim("ring", "arc")
    if g.lines:
        yield from _line(g)
    if not g.clusters or (g.ring_list and len(counted_clusters(g)) == len(g.clusters) > 2):
        return
    if g.pattern not in PLACELESS:
        yield _claim("clusters", min(len(counted_clusters(g)), 3))
        yield from _largest(g)
        if len(counted_clusters(g)) > 1 and g.clusters[1].zone != "center":
            yield _claim("clock", ("second cluster", g.clusters[1].hour))


def _line(g: Geometry) -> Iterator[Claim]:
    line = g.lines[0]
    yield _claim("line", "curved" if line.curvature else "straight")
    if not line.curvature:
        yield _claim("line", min(DIRECTIONS, key=lambda name: turned(line.direction, DIRECTIONS[name])))
    yield _claim("extent", ("line", max(5, 5 * round(20 * line.length))))


def _largest(g: Geometry) -> Iterator[Claim]:
    largest = g.clusters[0]
    yield _claim("size", _round_count(largest.size))
    if largest.density >= DENSE or largest.density < SPARSE:
        yield _claim("density", "dense" if largest.density >= DENSE else "sparse")


def _absent(g: Geometry) -> Iterator[Claim]:
    if g.repeat is not None:
        yield _claim("repeat", (g.repeat.rows, g.repeat.columns))
    if not g.ring_list:
        yield _claim("ring", "any", negated=True)
    if not g.lines:
        yield _claim("line", "any", negated=True)
    if not g.clusters:
        yield _claim("clusters", 0)


def _claim(kind: str, value: Value, negated: bool = False) -> Claim:
    return Claim(kind, value, negated=negated)


def _round_share(percent: float) -> int:
    """In steps of 1 percent, from 20 percent on of 5: within the tolerance of check."""
    return round(percent) if percent < 20 else 5 * round(percent / 5)


def _round_count(dies: int) -> int:
    """In steps of 1, from 10 dies on of 5, from 100 on of 10."""
    step = 1 if dies <= 10 else 5 if dies < 100 else 10
    return step * round(dies / step)
