"""Clusters: dense failing dies that hang together, and what they look like."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.geometry.background import Crowd
from wafervlm.geometry.chance import least_surprise
from wafervlm.geometry.places import Ints, Mask, Places, clock_angle, clock_hour, zone_of
from wafervlm.geometry.types import HOURS, ZONE_RADII, Cluster, Floats

LARGEST, SMALLEST = 8, 4
RIM = 0.9
# Degrees, length along over width across, and radius of an arc: the first at the rim, the second further in.
RIM_ARC, INNER_ARC = (45.0, 2.5, 0.7), (120.0, 4.0, 0.3)
_EIGHT = np.ones((3, 3), dtype=bool)


def label(crowd: Crowd, where: Places, ndimage: Any) -> NDArray[np.int32]:
    """(H, W): 1 for the dies of the largest cluster, 2 for the next, 0 for dies in none. A gap of one die
    does not part a cluster."""
    dense = crowd.dense
    # Each die drawn as a square of 2x2: dies that touch then are two apart at most.
    drawn = dense.copy()
    drawn[1:] |= dense[:-1]
    drawn[:, 1:] |= drawn[:, :-1].copy()
    marked, count = ndimage.label(drawn, structure=_EIGHT)
    if not count:
        return np.zeros(dense.shape, np.int32)
    marked *= dense
    flat = marked.ravel()
    sizes = np.bincount(flat, minlength=count + 1)
    scores = np.bincount(flat, weights=crowd.surprise.ravel(), minlength=count + 1)
    real = scores >= least_surprise(crowd.background, where.dies)
    real[flat[crowd.streak.ravel()]] = True
    sizes[~real] = 0
    sizes[0] = 0
    kept = np.argsort(-sizes, kind="stable")[:LARGEST]
    kept = kept[sizes[kept] >= SMALLEST]
    names = np.zeros(count + 1, np.int32)
    names[kept] = np.arange(1, len(kept) + 1)
    return np.asarray(names[marked])


def describe(marked: NDArray[np.int32], where: Places, failing: int) -> tuple[Cluster, ...]:
    """The clusters of ``marked`` as ``label`` gives them, among ``failing`` dies."""
    flat = marked.ravel()
    dies = np.flatnonzero(flat)
    if not len(dies):
        return ()
    name = flat[dies] - 1
    count = int(name.max()) + 1
    sizes = np.bincount(name)
    x, y, radius = where.x[dies], where.y[dies], where.radius[dies]

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(name, weights=values, minlength=count) / sizes)

    right, down = mean(x), mean(y)
    length, width, direction = _axes(mean, x - right[name], y - down[name], where)
    angles = clock_angle(right, down)
    turned = (where.angle[dies] - angles[name] + 180) % 360 - 180
    along = np.sqrt(12 * np.maximum(mean(turned**2) - mean(turned) ** 2, 0))
    middle = mean(radius)
    across = np.sqrt(12 * (np.maximum(mean(radius**2) - middle**2, 0) + where.pitch**2 / 12))
    aspect = np.radians(along) * middle / across
    arc = np.logical_or.reduce(
        [
            (middle >= inner) & (along >= angle) & (aspect >= least)
            for angle, least, inner in (RIM_ARC, INNER_ARC)
        ]
    )
    arc &= np.hypot(right, down) >= ZONE_RADII[0]
    rim = np.bincount(name[radius >= RIM], minlength=count) > 0
    in_hour = np.bincount(name * HOURS + where.clock[dies], minlength=count * HOURS).reshape(count, HOURS)
    density = sizes / np.maximum(_outlined(marked, where, count), 1)
    order = np.argsort(name, kind="stable")
    members = np.split(np.stack(np.divmod(dies[order], where.shape[1]), axis=1), np.cumsum(sizes)[:-1])
    clusters = []
    for i in range(count):
        distance, hour = float(np.hypot(right[i], down[i])), clock_hour(float(angles[i]))
        first, last = _span(in_hour[i] * 20 >= sizes[i], hour)
        clusters.append(
            Cluster(
                dies=members[i],
                size=int(sizes[i]),
                share=int(sizes[i]) / failing,
                radius=distance,
                angle=float(angles[i]),
                hour=hour,
                zone=zone_of(distance),
                first_hour=first,
                last_hour=last,
                length=float(length[i]),
                width=float(width[i]),
                direction=float(direction[i]),
                density=float(density[i]),
                rim=bool(rim[i]),
                arc=bool(arc[i]),
            )
        )
    return tuple(clusters)


def _axes(mean: Any, right: Floats, down: Floats, where: Places) -> tuple[Floats, Floats, Floats]:
    """Length and width, four standard deviations in wafer diameters, and direction of the longer axis."""
    # A die is not a point: its own spread is that of a uniform rectangle.
    xx = mean(right * right) + (2 / where.span[1]) ** 2 / 12
    yy = mean(down * down) + (2 / where.span[0]) ** 2 / 12
    xy = mean(right * down)
    middle, apart = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    direction = np.degrees(np.arctan2(-2 * xy, xx - yy)) / 2 % 180
    return 2 * np.sqrt(middle + apart), 2 * np.sqrt(np.maximum(middle - apart, 0)), direction


def _span(covered: Mask, hour: int) -> tuple[int, int]:
    """First and last of the ``covered`` (12,) hours, clockwise: what the longest gap leaves."""
    if covered.all():
        return (hour + 6) % HOURS + 1, (hour + 5) % HOURS + 1
    held = np.flatnonzero(covered)
    gaps = np.diff(held, append=held[0] + HOURS)
    after = int(np.argmax(gaps))
    first, last = held[(after + 1) % len(held)], held[after]
    return int(first) or HOURS, int(last) or HOURS


def _outlined(marked: NDArray[np.int32], where: Places, count: int) -> Ints:
    """Dies of each cluster's closing by 3x3 dies, as far as they are on the wafer."""
    wide = _largest_beside(marked)
    inside = ~(_largest_beside((wide == 0) & where.on_wafer.reshape(where.shape)) > 0)
    outlined = np.where(inside, wide, 0).ravel()[where.on_wafer]
    return np.bincount(outlined, minlength=count + 1)[1:]


def _largest_beside(values: NDArray[Any]) -> NDArray[Any]:
    """The largest value in the square of 3x3 cells around each."""
    rows = values.copy()
    np.maximum(rows[1:], values[:-1], out=rows[1:])
    np.maximum(rows[:-1], values[1:], out=rows[:-1])
    both: NDArray[Any] = rows.copy()
    np.maximum(both[:, 1:], rows[:, :-1], out=both[:, 1:])
    np.maximum(both[:, :-1], rows[:, 1:], out=both[:, :-1])
    return both
