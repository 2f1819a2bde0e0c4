"""Lines: clusters that are long and thin, straight or bent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wafervlm.geometry.places import Places, clock_angle, clock_hour, zone_of
from wafervlm.geometry.types import Cluster, Floats, Line

LENGTH, LENGTH_DIES = 0.15, 6.0
RIM, ALONG_RIM = 0.9, 30.0
ASPECT = 0.5  # of the cluster's axes, as a bent line may have
THIN = 0.3  # width across the curve over length along it
THIN_DIES = 3.5
KEPT = 0.8
BENT, STEP = 0.06, 0.7


def find(clusters: Sequence[Cluster], where: Places) -> tuple[Line, ...]:
    """Those of ``clusters`` that are lines, that with most dies first."""
    found = []
    for index, cluster in enumerate(clusters):
        if cluster.length >= LENGTH and cluster.width <= ASPECT * cluster.length and not cluster.arc:
            line = _line(index, cluster, where)
            if line is not None:
                found.append(line)
    return tuple(found)


def _line(index: int, cluster: Cluster, where: Places) -> Line | None:
    """The parabola through the cluster's dies in a frame along its longer axis, or the circle where they
    bend; dies that only hang on are left out."""
    flat = cluster.dies[:, 0] * where.shape[1] + cluster.dies[:, 1]
    x, y = where.x[flat], where.y[flat]
    if float(np.hypot(x, y).mean()) >= RIM and _tangential(cluster):
        return None
    turn = np.radians(cluster.direction)
    # Along the axis and to its left, with y up.
    axis, left = np.array([np.cos(turn), -np.sin(turn)]), np.array([-np.sin(turn), -np.cos(turn)])
    u, v = x * axis[0] + y * axis[1], x * left[0] + y * left[1]
    curve = _fit(u, v, where.pitch)
    if curve is None:
        return None
    length = (curve.length + 2 * _reach(axis, where)) / 2
    width = float(np.sqrt(12 * curve.spread + (2 * _reach(left, where)) ** 2)) / 2
    if (
        length < max(LENGTH, LENGTH_DIES * where.pitch / 2)
        or width > THIN * length
        or width > THIN_DIES * where.pitch / 2
    ):
        return None
    place = curve.middle[0] * axis + curve.middle[1] * left
    radius, angle = float(np.hypot(*place)), float(clock_angle(place[0], place[1]))
    return Line(
        dies=cluster.dies,
        cluster=index,
        length=length,
        width=width,
        direction=float((cluster.direction + curve.turned) % 180),
        curvature=2 * curve.bend,
        radius=radius,
        hour=clock_hour(angle),
        zone=zone_of(radius),
    )


@dataclass(frozen=True, slots=True)
class _Curve:
    """A curve through points, in wafer radii: its middle, length, the direction of its chord in degrees, its
    bend (1 / radius, 0 where straight), and the mean square of the distances from it."""

    middle: tuple[float, float]
    length: float
    turned: float
    bend: float
    spread: float


def _fit(u: Floats, v: Floats, pitch: float) -> _Curve | None:
    """The curve through most of the points (u, v), None where they are not on one."""
    kept = np.ones(len(u), dtype=bool)
    for _ in range(2):
        a, b, c = np.linalg.lstsq(np.stack([u * u, u, np.ones_like(u)], axis=1)[kept], v[kept])[0]
        rest = v - (a * u * u + b * u + c)
        spread = float((rest[kept] ** 2).mean())
        kept = np.abs(rest) <= max(2.5 * np.sqrt(spread), 0.75 * pitch)
    if kept.mean() < KEPT:
        return None
    u, v = u[kept], v[kept]
    first, last = float(u.min()), float(u.max())
    middle, half = (first + last) / 2, (last - first) / 2
    slope = float(2 * a * middle + b)
    # Sagitta over chord; and a straight row of dies has steps of one.
    if abs(a) * half / 2 < BENT or abs(a) * half**2 < STEP * pitch:
        length = 2 * half * np.sqrt(1 + slope**2)
        place = float(a * middle**2 + b * middle + c)
        return _Curve((middle, place), float(length), float(np.degrees(np.arctan(slope))), 0.0, spread)
    return _circle(u, v)


def _circle(u: Floats, v: Floats) -> _Curve:
    """Least squares u^2 + v^2 = 2 p u + 2 q v + r (Kasa 1976)."""
    p, q, r = np.linalg.lstsq(np.stack([2 * u, 2 * v, np.ones_like(u)], axis=1), u * u + v * v)[0]
    radius = float(np.sqrt(max(r + p * p + q * q, 1e-12)))
    toward = np.arctan2(v.mean() - q, u.mean() - p)
    angles = (np.arctan2(v - q, u - p) - toward + np.pi) % (2 * np.pi) - np.pi
    first, last = float(angles.min()), float(angles.max())
    middle = float(toward + (first + last) / 2)
    spread = float(((np.hypot(u - p, v - q) - radius) ** 2).mean())
    place = (float(p + radius * np.cos(middle)), float(q + radius * np.sin(middle)))
    # The chord is square to the radius of the middle.
    turned = float((np.degrees(middle) + 180) % 180 - 90)
    return _Curve(place, radius * (last - first), turned, 1 / radius, spread)


def _tangential(cluster: Cluster) -> bool:
    """Whether the longer axis lies along the rim."""
    # The rim at clock angle a runs along the direction -a.
    apart = (cluster.direction + cluster.angle) % 180
    return min(apart, 180 - apart) <= ALONG_RIM


def _reach(axis: NDArray[np.float64], where: Places) -> float:
    """Half the extent of one die along a direction."""
    return float(abs(axis[0]) / where.span[1] + abs(axis[1]) / where.span[0])
