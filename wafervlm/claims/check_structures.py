"""Checks of rings, lines, clusters, and of how failing dies are spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wafervlm.claims.check_places import within_count
from wafervlm.claims.claim import Claim
from wafervlm.claims.measured import (
    LISTED,
    Found,
    count,
    counted_clusters,
    joined,
    judged,
    missing,
    named,
    percent,
    untold,
)

if TYPE_CHECKING:
    from wafervlm.geometry.types import Geometry

# A reader places a ring to about half the width of one.
RADIUS_POINTS = 5.0
# A length is read off less well than a count: its ends are ragged.
EXTENT_POINTS, EXTENT_PART = 6.0, 0.25
# Between the two, either word is right.
DENSE_FROM, SPARSE_TO = 0.5, 0.6
# Failing share of the dies in no structure; the ranges overlap since the words do.
BACKGROUND = {"few": (0.0, 0.05), "some": (0.02, 0.15), "many": (0.08, 1.0)}
# Half of the failing dies at least.
ALONE_FROM, SPREAD_FROM = 0.5, 0.5
# Three failing dies of ten may lie elsewhere.
SYMMETRIC_FROM = 0.7
# A direction is right up to the middle between two of them, and as far again as a person misjudges.
DIRECTIONS = {"horizontal": 0.0, "rising": 45.0, "vertical": 90.0, "falling": 135.0}
DIRECTION_DEGREES = 32.5


def _pattern(claim: Claim, g: Geometry) -> Found:
    why = "no structure stands out" if g.pattern == "none" else f"the pattern is {g.pattern}"
    return judged(g.pattern != "none", why, None if g.main is None else g.main.dies)


def _ring(claim: Claim, g: Geometry) -> Found:
    form, radius = claim.value if isinstance(claim.value, tuple) else (claim.value, None)
    arcs = [c for c in g.clusters if c.arc]
    if form == "arc":
        right: list[Any] = [*arcs, *(r for r in g.ring_list if not r.closed)]
        return judged(bool(right), f"{count(len(right), 'arc')} found", joined([s.dies for s in right]))
    if not g.ring_list:
        return judged(False, "no ring is found" if not arcs else "an arc is found, no ring")
    right = [
        ring for ring in g.ring_list
        if (form == "any" or ring.closed == (form == "closed"))
        and (radius is None or abs(100 * ring.radius - radius) <= RADIUS_POINTS)
    ]  # fmt: skip
    shown = (right or g.ring_list)[0]
    word = "closed" if shown.closed else "open"
    why = f"the ring is {word}, at {percent(shown.radius)} of the radius"
    return judged(bool(right), why, joined([ring.dies for ring in right]))


def _line(claim: Claim, g: Geometry) -> Found:
    if not g.lines:
        return judged(False, "no line is found")
    right = [line for line in g.lines if _has_trait(line, str(claim.value))]
    shown = (right or g.lines)[0]
    shape = "curved" if shown.curvature else "straight"
    why = f"the line is {shape}, its direction {shown.direction:.0f} degrees"
    return judged(bool(right), why, joined([line.dies for line in right]))


def _has_trait(line: Any, trait: str) -> bool:
    if trait in ("straight", "curved"):
        return bool(line.curvature) == (trait == "curved")
    if trait == "diagonal":
        return _has_trait(line, "rising") or _has_trait(line, "falling")
    return trait == "any" or turned(line.direction, DIRECTIONS[trait]) <= DIRECTION_DEGREES


def turned(a: float, b: float) -> float:
    """Degrees between the directions of two axes, 0 to 90."""
    return min((a - b) % 180, (b - a) % 180)


def _clusters(claim: Claim, g: Geometry) -> Found:
    value, every, large = claim.value, len(g.clusters), len(counted_clusters(g))
    why = f"{count(every, 'cluster')} found"
    why += f", {large} of a like size" if large != every else ""
    dies = joined([c.dies for c in g.clusters])
    if value == "any":
        return judged(every > 0, why, dies)
    if value == "several":
        return judged(every > 1, why, dies)
    if every >= LISTED and value == 3:
        return judged(True, why, dies)
    return judged(value in (min(every, 3), min(large, 3)), why, dies)


def _size(claim: Claim, g: Geometry) -> Found:
    subject = claim.subject or "largest cluster"
    clusters: list[Any] = named(subject, g)
    if not clusters:
        return missing(subject, g)
    right = [c for c in clusters if within_count(claim.plain, c.size)]
    return judged(
        bool(right), f"the {subject} has {(right or clusters)[0].size} dies", joined([c.dies for c in right])
    )


def _extent(claim: Claim, g: Geometry) -> Found:
    structures: list[Any] = named(claim.subject, g)
    if claim.subject is None and any(s in structures for s in g.ring_list):
        return untold("the length of a ring is not measured")
    if not structures:
        return missing(claim.subject, g)
    right = [
        s for s in structures
        if abs(claim.plain - 100 * s.length) <= max(EXTENT_POINTS, EXTENT_PART * 100 * s.length)
    ]  # fmt: skip
    why = f"its length is {percent((right or structures)[0].length)} of the diameter"
    return judged(bool(right), why, joined([s.dies for s in right]))


def _density(claim: Claim, g: Geometry) -> Found:
    clusters: list[Any] = named(claim.subject or "largest cluster", g)
    if not clusters and claim.subject is None:
        if g.ring_list:
            return untold("the density of a ring is not measured")
        if g.pattern in ("full", "scatter"):
            holds = g.share >= DENSE_FROM if claim.plain == "dense" else g.share <= SPARSE_TO
            return judged(holds, f"{percent(g.share)} of the dies fail")
    if not clusters:
        return missing(claim.subject or "largest cluster", g)
    density = clusters[0].density
    holds = density >= DENSE_FROM if claim.plain == "dense" else density <= SPARSE_TO
    return judged(holds, f"{percent(density)} of the dies within the cluster fail", clusters[0].dies)


def _scatter(claim: Claim, g: Geometry) -> Found:
    if not g.failing:
        return judged(False, "no die fails")
    if claim.value == "alone":
        return judged(g.lonely >= ALONE_FROM, f"{percent(g.lonely)} of the failing dies stand alone")
    holds = g.pattern in ("scatter", "full") or g.background >= SPREAD_FROM * g.share
    return judged(holds, f"{percent(g.background)} of the dies outside of all structures fail")


def _background(claim: Claim, g: Geometry) -> Found:
    low, high = BACKGROUND[str(claim.value)]
    return judged(low <= g.background <= high, f"{percent(g.background)} of the other dies fail")


def _repeat(claim: Claim, g: Geometry) -> Found:
    found = g.repeat
    if found is None:
        return judged(False, "no repeat is found")
    why = f"the repeat has a period of {found.rows} rows and {found.columns} columns"
    return judged(claim.value in ("any", (found.rows, found.columns)), why, found.dies)


def _symmetry(claim: Claim, g: Geometry) -> Found:
    if not g.failing:
        return judged(False, "no die fails")
    why = f"the symmetry about the centre is {g.rotational:.2f} of 1, about the best axis {g.mirror:.2f}"
    if claim.value == "any" and g.rotational < SYMMETRIC_FROM <= g.mirror:
        return untold(why)
    measured = g.mirror if claim.value == "mirror" else g.rotational
    return judged(measured >= SYMMETRIC_FROM, why)


STRUCTURES: dict[str, Callable[[Claim, Any], Found]] = {
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
    "symmetry": _symmetry,
}
