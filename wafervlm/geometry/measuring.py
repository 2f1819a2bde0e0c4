"""From the dies of a wafer to its geometry."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from wafervlm.errors import MissingDependencyError
from wafervlm.geometry import bands, clusters, lines, repeats
from wafervlm.geometry.background import assumed_background, crowd
from wafervlm.geometry.places import Mask, Places, places
from wafervlm.geometry.shares import neighbours, shares
from wafervlm.geometry.summary import FULL, SCATTER, dominating, outstanding_zone, symmetries, zone_of
from wafervlm.geometry.types import Cluster, Dies, Geometry, Line, Ring, Shares
from wafervlm.wafermap import FAIL, DieGrid, WaferMap, transform

SOLID, TOO_MUCH, FRAY, LEFT = 0.9, 0.45, 0.1, 0.4
_SHARES = tuple(field.name for field in fields(Shares))


def measure(dies: DieGrid) -> Geometry:
    """Measure ``dies`` (H, W) uint8 as they lie in the image: frame "image".

    Raises WaferMapError where no die is on the wafer, MissingDependencyError where scipy is not installed.
    """
    ndimage = _ndimage()
    where, failing = places(dies), dies == FAIL
    found = shares(where, failing, neighbours(failing))
    repeat = repeats.find(failing, where)
    loose = failing.copy()
    if repeat is not None:
        loose[repeat.dies[:, 0], repeat.dies[:, 1]] = False
    rings, clustered = _structures(loose, where, found, ndimage)
    drawn = lines.find(clustered, where)
    held = (failing & ~loose) | _held(rings, clustered, dies.shape)
    on_wafer = where.on_wafer.reshape(dies.shape)
    rest = on_wafer & ~held
    contrast = found.zones / found.share if found.failing else np.zeros(3)
    zone_dies = where.polar_dies.reshape(3, -1).sum(axis=1)
    rotational, mirror = symmetries(np.flatnonzero(failing), where)
    pattern, main, main_hour = dominating(found, clustered, rings, drawn)
    outstanding = outstanding_zone(found, contrast, zone_dies)
    return Geometry(
        **{name: getattr(found, name) for name in _SHARES},
        frame="image",
        background=np.count_nonzero(failing & rest) / max(int(np.count_nonzero(rest)), 1),
        contrast=contrast,
        main_zone=outstanding or zone_of(main),
        zone_stands_out=outstanding is not None,
        rotational=rotational,
        mirror=mirror,
        clusters=clustered,
        ring_list=rings,
        lines=drawn,
        repeat=repeat,
        pattern=pattern,
        main=main,
        main_hour=main_hour,
    )


Structures = tuple[tuple[Ring, ...], tuple[Cluster, ...]]


def _structures(loose: Mask, where: Places, found: Shares, ndimage: Any) -> Structures:
    """Rings, and the clusters among the dies in none."""
    if found.share >= FULL:
        return (), ()
    background = assumed_background(found, where)
    rings, clustered = _told_from(background, loose, where, found, ndimage)
    if background >= SCATTER and (rings or clustered):
        # Structures over half of the wafer pass for background; what they leave does not.
        rest = where.on_wafer.reshape(where.shape) & ~_held(rings, clustered, where.shape)
        left = np.count_nonzero(loose & rest) / max(int(np.count_nonzero(rest)), 1)
        if left < LEFT * background:
            background = left
            rings, clustered = _told_from(background, loose, where, found, ndimage)
    if background < SCATTER:
        return rings, clustered
    # Where many dies fail everywhere, chance and a slope make parts that are denser; only solid ones count.
    return (), tuple(c for c in clustered if c.density >= SOLID and background < TOO_MUCH)


def _told_from(background: float, loose: Mask, where: Places, found: Shares, ndimage: Any) -> Structures:
    """What stands out of a ``background``."""
    dense = crowd(loose, where, background)
    rings = bands.find(loose, dense, where)
    # The dies of a ring make nothing beside it look crowded.
    free = crowd(loose & ~_held(rings, (), where.shape), where, background) if rings else dense
    clustered = clusters.describe(clusters.label(free, where, ndimage), where, found.failing)
    rounds = [bands.around(cluster, loose, where) for cluster in clustered]
    rings = tuple(sorted((*rings, *filter(None, rounds)), key=lambda ring: -len(ring.dies)))
    left = (cluster for cluster, ring in zip(clustered, rounds, strict=True) if ring is None)
    return rings, tuple(c for c in left if not any(_frays(c, ring, where) for ring in rings))


def _frays(cluster: Cluster, ring: Ring, where: Places) -> bool:
    """Whether a small cluster at the edge of a ring is no more than the ring's frayed edge."""
    flat = cluster.dies[:, 0] * where.shape[1] + cluster.dies[:, 1]
    beyond = abs(float(where.radius[flat].mean()) - ring.radius) - ring.width / 2
    return cluster.size < FRAY * len(ring.dies) and beyond < 3 * where.pitch


def _held(rings: tuple[Ring, ...], found: tuple[Cluster, ...], shape: tuple[int, ...]) -> Mask:
    """(H, W): the dies of the structures."""
    held = np.zeros(shape, dtype=bool)
    for dies in (*(ring.dies for ring in rings), *(cluster.dies for cluster in found)):
        held[dies[:, 0], dies[:, 1]] = True
    return held


def measure_wafer(wafer: WaferMap) -> Geometry:
    """Measure ``wafer``, turned so that its orientation mark lies at 6 o'clock: frame "tool"; as it lies in
    the image where the mark is not known: frame "image". Dies are named by row and column of the given grid.

    Raises MissingDependencyError where scipy is not installed.
    """
    if wafer.orientation is None:
        return measure(wafer.dies)
    turns = wafer.upright_turns
    found = measure(transform(wafer.dies, turns))
    rows, columns = wafer.shape
    given = np.rot90(np.arange(rows * columns).reshape(rows, columns), turns)

    def back(dies: Dies) -> Dies:
        return np.stack(np.divmod(given[dies[:, 0], dies[:, 1]], columns), axis=1)

    clustered = tuple(replace(c, dies=back(c.dies)) for c in found.clusters)
    rings = tuple(replace(r, dies=back(r.dies)) for r in found.ring_list)
    drawn = tuple(replace(line, dies=back(line.dies)) for line in found.lines)
    before = (*found.clusters, *found.ring_list, *found.lines)
    after: tuple[Cluster | Ring | Line, ...] = (*clustered, *rings, *drawn)
    main = next((new for old, new in zip(before, after, strict=True) if old is found.main), None)
    repeat = found.repeat and replace(found.repeat, dies=back(found.repeat.dies))
    return replace(
        found,
        frame="tool",
        shape=wafer.shape,
        clusters=clustered,
        ring_list=rings,
        lines=drawn,
        repeat=repeat,
        main=main,
    )


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingDependencyError(
            "measuring the dies of a wafer needs scipy: pip install 'wafervlm[words]'"
        ) from None
    return ndimage
