"""Rings: bands of radius in which failing dies go round the wafer."""

from __future__ import annotations

import numpy as np

from wafervlm.geometry.background import Crowd
from wafervlm.geometry.places import SECTORS, Ints, Mask, Places, clock_angle, clock_hour, zone_of
from wafervlm.geometry.types import HOURS, Cluster, Floats, Ring

COVERED = 2 / 3
HOLE, HOLLOW = 0.15, 0.5
OFF_CENTRE, LEAST_DIES = 0.35, 20
HOLLOW_AROUND, FAINT = 0.5, 0.75
WIDEST_GAP = 4  # sectors: 40 degrees
OPEN_SHARE = 0.45
EDGE_SHARE = 0.4
MOST_RINGS = 2
# Bands beside a ring's own in which its borders may lie, and the failing shares told apart there.
BESIDE, LEAST, MOST = 2, 0.01, 0.97


def find(failing: Mask, crowd: Crowd, where: Places) -> tuple[Ring, ...]:
    """The rings of the ``failing`` dies (H, W), that with most dies first."""
    fails, dense = np.flatnonzero(failing), np.flatnonzero(crowd.dense)
    if len(dense) < SECTORS // 2:
        return ()
    profile = _profile(fails, where)
    rings = []
    for first, last in _runs(_going_round(dense, where)):
        ring = _ring(fails, dense, profile, (first, last), crowd.background, where)
        if ring is not None:
            rings.append(ring)
    return tuple(sorted(rings, key=lambda ring: -len(ring.dies))[:MOST_RINGS])


def _going_round(dense: Ints, where: Places) -> Mask:
    """Which bands of radius have dense dies in two thirds of their sectors: (bands,)."""
    here = _cells(dense, where)
    there = _cells(np.flatnonzero(where.on_wafer), where)
    here, there = _three(here), _three(there)
    populated = (there > 0).sum(axis=0)
    return np.asarray(((here > 0.1 * there) & (here > 0)).sum(axis=0) >= COVERED * np.maximum(populated, 1))


def _cells(dies: Ints, where: Places) -> Ints:
    count = SECTORS * where.bands
    return np.bincount(where.sector[dies] * where.bands + where.band[dies], minlength=count).reshape(
        SECTORS, where.bands
    )


def _three(counts: Ints) -> Ints:
    """Each band with the one before and the one after."""
    total: Ints = counts.copy()
    total[..., 1:] += counts[..., :-1]
    total[..., :-1] += counts[..., 1:]
    return total


def _runs(held: Mask) -> list[tuple[int, int]]:
    """First and last index of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], held, [False]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _profile(fails: Ints, where: Places) -> Floats:
    return np.bincount(where.band[fails], minlength=where.bands) / np.maximum(where.band_dies, 1)


def _ring(
    fails: Ints, dense: Ints, profile: Floats, run: tuple[int, int], background: float, where: Places
) -> Ring | None:
    """The ring in a run of bands, None where it is a disc or does not go round after all."""
    first, last = run
    top = first + int(np.argmax(profile[first : last + 1]))
    edge = background + EDGE_SHARE * (profile[top] - background)
    first = last = top
    while first > 0 and profile[first - 1] >= edge:
        first -= 1
    while last < where.bands - 1 and profile[last + 1] >= edge:
        last += 1
    inside = float(np.average(profile[:first], weights=where.band_dies[:first] + 1e-9)) if first else 1.0
    band_share = float(np.average(profile[first : last + 1], weights=where.band_dies[first : last + 1]))
    if first * where.pitch < HOLE or inside > HOLLOW * band_share:
        return None
    held = fails[(where.band[fails] >= first) & (where.band[fails] <= last)]
    on_wafer = np.flatnonzero(where.on_wafer & (where.band >= first) & (where.band <= last))
    occupied = _occupied(held, on_wafer, background, where)
    coverage = float(occupied.mean())
    if coverage < COVERED:
        return None
    gap, second, middle = _gaps(occupied)
    if second >= WIDEST_GAP:
        return None
    share = len(held) / np.count_nonzero(occupied[where.sector[on_wafer]])
    near = np.flatnonzero(where.on_wafer & (where.band >= first - BESIDE) & (where.band <= last + BESIDE))
    near = near[occupied[where.sector[near]]]
    radius, width = _extent(where.radius[near], np.isin(near, fails), (background, share), where.pitch)
    # What hangs on a ring inside and outside is part of it, but for a die of its width.
    beside = dense[(where.band[dense] >= first - 1) & (where.band[dense] <= last + 1)]
    dies = np.union1d(held, beside)
    dies = dies[occupied[where.sector[dies]]]
    closed = gap < WIDEST_GAP
    return Ring(
        dies=np.stack(np.divmod(dies, where.shape[1]), axis=1),
        radius=radius,
        width=width,
        coverage=coverage,
        closed=closed,
        gap_hour=None if closed else clock_hour(middle),
        zone=zone_of(radius),
    )


def _occupied(held: Ints, on_wafer: Ints, background: float, where: Places) -> Mask:
    """Which of the 36 sectors the failing dies ``held`` of a band occupy; a sector is looked at with half of
    each of its neighbours, since on a small wafer it has few dies."""
    fails, dies = (np.bincount(where.sector[part], minlength=SECTORS) for part in (held, on_wafer))
    fails, dies = (2 * v + np.roll(v, 1) + np.roll(v, -1) for v in (fails, dies))
    share = fails / np.maximum(dies, 1)
    full = float(np.median(np.sort(share)[SECTORS // 3 :]))
    return np.asarray(share >= background + OPEN_SHARE * (full - background)) & (share > 0)


def _gaps(occupied: Mask) -> tuple[int, int, float]:
    """Lengths of the two longest runs of empty sectors, and the clock angle of the middle of the longest."""
    held = np.flatnonzero(occupied)
    runs = np.diff(held, append=held[0] + SECTORS)
    at = int(np.argmax(runs))
    longest, second = int(runs[at]) - 1, int(np.sort(runs)[-2]) - 1 if len(runs) > 1 else 0
    return longest, second, float((held[at] + 0.5 + runs[at] / 2) * 360 / SECTORS % 360)


def _extent(radius: Floats, fails: Mask, shares: tuple[float, float], pitch: float) -> tuple[float, float]:
    """Middle and width of the ring among dies (N,) at ``radius``, of which ``fails`` fail: the likeliest
    stretch, where the first of ``shares`` fails outside of it and the second inside.

    It is the stretch with the largest sum of log likelihood ratios (J. Bentley, "Algorithm design
    techniques", 1984).
    """
    order = np.argsort(radius, kind="stable")
    # The outermost dies reach half a pitch further, but not beyond the wafer.
    rim = float(radius.max())
    reach = min(pitch / 2, max(1.0 - rim, 0.0))
    radius = np.concatenate([[radius.min() - pitch], radius[order], [rim + 2 * reach]])
    inside = min(shares[1], MOST)
    outside = min(max(shares[0], LEAST), inside / 2)
    gain = np.where(fails[order], np.log(inside / outside), np.log((1 - inside) / (1 - outside)))
    total = np.concatenate([[0.0], np.cumsum(gain)])
    last = int(np.argmax(total - np.minimum.accumulate(total)))
    first = int(np.argmin(total[: last + 1]))
    # A border lies half-way between the last die on the one side and the first on the other.
    inner, outer = (float(radius[at] + radius[at + 1]) / 2 for at in (first, last))
    return (inner + outer) / 2, outer - inner


def around(cluster: Cluster, failing: Mask, where: Places) -> Ring | None:
    """The ring that ``cluster`` is about its own centroid, None where it is none: what goes round a hollow
    that lies a little off the wafer's centre."""
    if cluster.size < LEAST_DIES or cluster.radius >= OFF_CENTRE:
        return None
    turn = np.radians(cluster.angle)
    x, y = where.x - cluster.radius * np.sin(turn), where.y + cluster.radius * np.cos(turn)
    distance = np.hypot(x, y)
    flat = cluster.dies[:, 0] * where.shape[1] + cluster.dies[:, 1]
    own = distance[flat]
    middle, spread = float(own.mean()), float(np.sqrt(3 * own.var()))
    fails = failing.ravel()
    hollow = where.on_wafer & (distance < HOLLOW_AROUND * middle)
    band = where.on_wafer & (np.abs(distance - middle) <= spread)
    if middle < 2 * HOLE or np.count_nonzero(hollow) < 4:
        return None
    if fails[hollow].mean() > FAINT * fails[band].mean():
        return None
    sectors = (clock_angle(x[flat], y[flat]) / (360 / HOURS)).astype(np.int64) % HOURS
    occupied = np.repeat(np.bincount(sectors, minlength=HOURS) > 0, SECTORS // HOURS)
    coverage = float(occupied.mean())
    if coverage < 3 / 4:
        return None
    gap, _, angle = _gaps(occupied)
    closed = gap < WIDEST_GAP
    return Ring(
        dies=cluster.dies,
        radius=middle,
        width=2 * spread,
        coverage=coverage,
        closed=closed,
        gap_hour=None if closed else clock_hour(angle),
        zone=zone_of(middle),
    )
