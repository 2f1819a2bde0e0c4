"""Claims about the shape of what is planted: what the truth of a wafer says of each, None where nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.assessment.planted_places import LINES, PLACED, RINGS, Planted
from wafervlm.claims import Claim
from wafervlm.claims.check_places import within_count
from wafervlm.claims.check_structures import (
    ALONE_FROM,
    BACKGROUND,
    DENSE_FROM,
    DIRECTION_DEGREES,
    DIRECTIONS,
    EXTENT_PART,
    EXTENT_POINTS,
    RADIUS_POINTS,
    SPARSE_TO,
    SPREAD_FROM,
)

Told = bool | None


def _pattern(_: Claim, planted: Planted) -> Told:
    return None if planted.kind in ("repeat", "scatter") else planted.kind != "none"


def _ring(claim: Claim, planted: Planted) -> Told:
    form, radius = claim.value if isinstance(claim.value, tuple) else (claim.value, None)
    if form == "arc":
        return None if planted.kind == "curved line" else planted.kind in ("arc", "open ring")
    if planted.kind not in RINGS:
        return False
    if form != "any" and (form == "open") != (planted.kind == "open ring"):
        return False
    return radius is None or abs(100 * planted.truth.radius - radius) <= RADIUS_POINTS


def _line(claim: Claim, planted: Planted) -> Told:
    if planted.kind not in LINES:
        return None if planted.kind == "arc" else False
    said, bent = str(claim.value), bool(planted.truth.bend)
    if said == "any":
        return True
    if said in ("straight", "curved"):
        return bent == (said == "curved")
    wanted = ("rising", "falling") if said == "diagonal" else (said,)
    turns = [abs((planted.truth.direction - DIRECTIONS[name] + 90) % 180 - 90) for name in wanted]
    return min(turns) <= DIRECTION_DEGREES


def _clusters(claim: Claim, planted: Planted) -> Told:
    if planted.kind in ("full", "scatter"):
        return None
    # A line is one structure, and whether it is called a cluster is a matter of words.
    if planted.kind in LINES and claim.value == 0:
        return None
    count = int(planted.kind in PLACED)
    return {"any": count > 0, "several": count > 1}.get(str(claim.value), claim.value == count)


def _size(claim: Claim, planted: Planted) -> Told:
    if planted.kind == "full":
        return None
    if planted.kind not in PLACED or claim.subject in ("second cluster", "third cluster"):
        return False
    return within_count(claim.plain, len(planted.truth.dies))


def _extent(claim: Claim, planted: Planted) -> Told:
    if planted.kind in (*RINGS, "full"):
        return None
    if planted.kind not in PLACED or claim.subject in ("second cluster", "third cluster"):
        return False
    length = 100 * planted.extent
    return bool(abs(claim.plain - length) <= max(EXTENT_POINTS, EXTENT_PART * length))


def _density(claim: Claim, planted: Planted) -> Told:
    if planted.kind in RINGS:
        return None
    if planted.kind in ("full", "scatter"):
        return planted.share >= DENSE_FROM if claim.plain == "dense" else planted.share <= SPARSE_TO
    if planted.kind not in PLACED or claim.subject in ("second cluster", "third cluster"):
        return False
    # Three of four dies of a structure fail at least.
    return bool(claim.plain == "dense")


def _scatter(claim: Claim, planted: Planted) -> Told:
    if not planted.failing.any():
        return False
    if claim.value == "alone":
        return _lonely(planted) >= ALONE_FROM
    if planted.kind in ("scatter", "full", "none", "repeat"):
        return True
    return planted.background >= SPREAD_FROM * planted.share


def _lonely(planted: Planted) -> float:
    """Share of the failing dies with at most one failing neighbour among eight."""
    padded = np.pad(planted.failing.astype(int), 1)
    rows, columns = planted.failing.shape
    shifted = [padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    around = np.sum(shifted, axis=0)
    return float(((around - 1)[planted.failing] <= 1).mean())


def _background(claim: Claim, planted: Planted) -> Told:
    if planted.kind in ("scatter", "full", "repeat"):
        return None
    low, high = BACKGROUND[str(claim.value)]
    return low <= planted.background <= high


def _repeat(claim: Claim, planted: Planted) -> Told:
    return planted.kind == "repeat" and claim.value in ("any", planted.truth.period)


SHAPES: dict[str, Callable[[Claim, Planted], Told]] = {
    "pattern": _pattern,
    "ring": _ring,
    "line": _line,
    "clusters": _clusters,
    "size": _size,
    "extent": _extent,
    "density": _density,
    "scatter": _scatter,
    "background": _background,
    "repeat": _repeat,
}
