"""What dominates a wafer: its zone, its symmetry, the word for its pattern."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wafervlm.geometry.places import Ints, Places
from wafervlm.geometry.types import HOURS, ZONES, Cluster, Floats, Line, Pattern, Ring, Shares, Zone

FULL = 0.7
SCATTER = 0.25
STANDS_OUT = 1.25
ALIKE = 0.6
BROAD = 0.2
# Of the wafer's diameter: a structure of this length lies in several zones.
ACROSS = 0.8

Structure = Cluster | Ring | Line


def outstanding_zone(found: Shares, contrast: Floats, zone_dies: Ints) -> Zone | None:
    """The zone of the highest contrast; None where no zone stands out of what chance gives."""
    best = int(np.argmax(contrast))
    if not found.failing or contrast[best] < STANDS_OUT:
        return None
    expected = zone_dies * found.share
    spread = float((expected * (contrast - 1) ** 2).sum() / max(1 - found.share, 1e-9))
    # Chi-square with two degrees of freedom, one percent.
    return ZONES[best] if spread > 9.21 else None


def zone_of(main: Structure | None) -> Zone | None:
    """The zone of the ``main`` structure; None without one, or where it goes across the wafer."""
    across = getattr(main, "length", 0.0) > ACROSS and not getattr(main, "arc", False)
    return None if main is None or across else main.zone


def symmetries(fails: Ints, where: Places) -> tuple[float, float]:
    """Symmetry about the centre and about the best of twelve axes through it."""
    if not len(fails):
        return 0.0, 0.0
    dies = where.polar_dies.reshape(len(ZONES), HOURS)
    counts = np.bincount(where.polar_cell[fails], minlength=dies.size).reshape(dies.shape)
    mean = counts.sum(axis=1, keepdims=True) / np.maximum(dies.sum(axis=1, keepdims=True), 1) * dies
    rotational = 1 - np.abs(counts - mean).sum() / (2 * len(fails))
    share = counts / np.maximum(dies, 1)
    # Mirrored about the axis at a clock angle of 15 a degrees, hour h becomes a - h.
    images = share[:, _MIRRORED].transpose(1, 0, 2)
    moved = np.abs(share[None] - images) * dies[None]
    return float(rotational), float(1 - moved.sum(axis=(1, 2)).min() / (2 * len(fails)))


_MIRRORED = (np.arange(HOURS)[:, None] - np.arange(HOURS)[None, :]) % HOURS


def dominating(
    found: Shares, clusters: Sequence[Cluster], rings: Sequence[Ring], lines: Sequence[Line]
) -> tuple[Pattern, Structure | None, int | None]:
    """The word for the structure with most dies, the structure, and its clock position."""
    if found.share >= FULL:
        return "full", None, None
    largest = clusters[0] if clusters else None
    if rings and (largest is None or len(rings[0].dies) >= largest.size):
        ring = rings[0]
        return ("annulus" if ring.zone != "edge" and ring.width >= BROAD else "ring"), ring, None
    if largest is None:
        return ("scatter" if found.share >= SCATTER else "none"), None, None
    line = next((line for line in lines if line.cluster == 0), None)
    main: Cluster | Line = largest if line is None else line
    hour = None if main.zone == "center" else main.hour
    if largest.arc:
        return "arc", main, hour
    if line is not None:
        return ("curved line" if line.curvature else "line"), main, hour
    several = len(clusters) > 1 and clusters[1].size >= ALIKE * largest.size
    return ("clusters" if several else "cluster"), main, hour
