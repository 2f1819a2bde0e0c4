"""How well the geometry of a wafer is measured: against synthetic wafers of known make, and how fast.

::

    python -m benchmarks.planted_geometry -o benchmarks/results/geometry.json

A position is the mean of the planted dies. A position within one die of the border of two clock sectors, or
of two zones, is borderline: sectors and zones are counted with and without those.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.planted import KINDS, Grid, Truth, plant
from train.progress import track
from wafervlm import console
from wafervlm.geometry import Geometry, measure

MEDIAN_SHAPE = (33, 33)
WORDS = {
    "cluster": ("cluster",),
    "arc": ("arc",),
    "closed ring": ("ring",),
    "open ring": ("ring",),
    "annulus": ("annulus",),
    "line": ("line",),
    "curved line": ("curved line",),
    "scatter": ("scatter",),
    "full": ("full",),
    "none": ("none",),
    "repeat": ("none", "scatter"),
}
PLACED = ("cluster", "arc", "line", "curved line")
RINGS = ("closed ring", "open ring", "annulus")
PERCENTILES = (50, 90, 95, 99, 100)
ZONE_BORDERS = {"center": (0.0, 0.35), "middle": (0.35, 0.72), "edge": (0.72, 2.0)}

Figures = dict[str, float]


def figures_of(dies: Grid, truth: Truth) -> Figures:
    """What was measured on ``dies``, against its truth: errors in the units of their names, hits 0 or 1."""
    found = measure(dies)
    return {
        "word right": float(found.pattern in WORDS[truth.kind]),
        "hour given": float(found.main_hour is not None),
        **dict(_by_kind(found, truth)),
    }


def _by_kind(found: Geometry, truth: Truth) -> Iterator[tuple[str, float]]:
    if truth.kind in PLACED:
        yield from _place(found, truth)
    if truth.kind == "arc":
        yield from _arc(found, truth)
    if truth.kind in RINGS:
        yield from _ring(found, truth)
    if truth.kind in ("line", "curved line"):
        yield from _line(found, truth)
    if truth.kind in ("none", "scatter"):
        yield "no structure", float(found.main is None)
    if truth.kind in ("none", "scatter", "cluster"):
        yield "background, points", 100 * abs(found.background - _failing_elsewhere(found, truth))
    if truth.kind == "repeat":
        here = (0, 0) if found.repeat is None else (found.repeat.rows, found.repeat.columns)
        yield "period exact", float(here == truth.period)
    else:
        yield "no repeat", float(found.repeat is None)


def _failing_elsewhere(found: Geometry, truth: Truth) -> float:
    planted = len(truth.dies) if truth.kind == "cluster" else 0
    return (found.failing - planted) / (found.dies - planted)


def _place(found: Geometry, truth: Truth) -> Iterator[tuple[str, float]]:
    """The largest cluster: its distance from the truth in dies, whether sector and zone are the truth's."""
    yield "found", float(bool(found.clusters))
    yield "clusters right", float(len(found.clusters) == 1)
    if not found.clusters:
        return
    cluster = found.clusters[0]
    x, y = _position(cluster.radius, cluster.angle)
    rows, columns = found.shape
    yield "position, dies", math.hypot((x - truth.x) * columns / 2, (y - truth.y) * rows / 2)
    pitch, radius = 2 / min(rows, columns), math.hypot(truth.x, truth.y)
    turn = math.degrees(math.atan2(truth.x, -truth.y))
    hour = math.floor(turn / 30 + 0.5) % 12 or 12
    yield "hour exact", float(cluster.hour == hour)
    # Distance from the nearer border of the sector.
    away = radius * math.sin(math.radians(15 - abs((turn + 15) % 30 - 15)))
    if away > pitch:
        yield "hour exact, not borderline", float(cluster.hour == hour)
    zone = next(name for name, (_, outer) in ZONE_BORDERS.items() if radius < outer)
    if min(abs(radius - border) for border in (0.35, 0.72)) > pitch:
        yield "zone exact, not borderline", float(cluster.zone == zone)
    expected = None if zone == "center" else hour
    line = truth.kind not in ("cluster", "arc")
    if not line and away > pitch and min(abs(radius - border) for border in (0.35, 0.72)) > pitch:
        yield "main hour exact, not borderline", float(found.main_hour == expected)


def _position(radius: float, angle: float) -> tuple[float, float]:
    turn = math.radians(angle)
    return radius * math.sin(turn), -radius * math.cos(turn)


def _arc(found: Geometry, truth: Truth) -> Iterator[tuple[str, float]]:
    if not found.clusters:
        return
    cluster = found.clusters[0]
    yield "angle, degrees", _turned(cluster.angle, truth.angle, 360)
    for end, hour in ((-1, cluster.first_hour), (1, cluster.last_hour)):
        border = truth.angle + end * truth.extent / 2
        yield (
            f"{'first' if end < 0 else 'last'} hour within one",
            float(_turned(30 * hour, border, 360) <= 45),
        )


def _ring(found: Geometry, truth: Truth) -> Iterator[tuple[str, float]]:
    yield "found", float(bool(found.ring_list))
    if not found.ring_list:
        return
    ring = found.ring_list[0]
    error = abs(ring.radius - truth.radius)
    yield "radius, percent of the wafer's radius", 100 * error
    yield "radius, percent of its own", 100 * error / truth.radius
    yield "width, percent of the wafer's radius", 100 * abs(ring.width - truth.width)
    is_open = truth.kind == "open ring"
    yield "closed right", float(ring.closed != is_open)
    if is_open and ring.gap_hour is not None:
        yield "gap hour within one", float(_turned(30 * ring.gap_hour, truth.angle, 360) <= 45)
    yield "alone", float(len(found.ring_list) == 1 and not found.clusters)


def _line(found: Geometry, truth: Truth) -> Iterator[tuple[str, float]]:
    yield "line found", float(bool(found.lines))
    if found.lines:
        line = found.lines[0]
        yield "direction, degrees", _turned(line.direction, truth.direction, 180)
        yield "length, percent", 100 * abs(2 * line.length / truth.length - 1)
        if truth.bend and line.curvature:
            yield "curvature, percent", 100 * abs(line.curvature / (2 * truth.bend) - 1)


def _turned(first: float, second: float, whole: float) -> float:
    apart = (first - second) % whole
    return min(apart, whole - apart)


def accuracy(count: int, seed: int) -> dict[str, Any]:
    """``count`` wafers, as many of each kind: for each kind and over all the mean of what is 0 or 1, and the
    percentiles of errors."""
    rng = np.random.default_rng(seed)
    by_kind: dict[str, list[Figures]] = defaultdict(list)
    for i in track(range(count), "measure planted wafers"):
        kind = KINDS[i % len(KINDS)]
        by_kind[kind].append(figures_of(*plant(kind, rng)))
    summary = {kind: summed(rows) for kind, rows in by_kind.items()}
    return {"all": _over(by_kind), "by_kind": summary}


def summed(rows: Sequence[Figures]) -> dict[str, Any]:
    """Each figure over ``rows``: of hits the share, of errors the percentiles."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    return {"wafers": len(rows), **{name: _summary(name, found) for name, found in values.items()}}


def _summary(name: str, found: list[float]) -> Any:
    if "," not in name or name.endswith("borderline"):
        return {"share": round(float(np.mean(found)), 4), "of": len(found)}
    percentiles = np.percentile(found, PERCENTILES)
    return {
        **{f"p{p}": round(float(v), 3) for p, v in zip(PERCENTILES, percentiles, strict=True)},
        "of": len(found),
    }


def _over(by_kind: Mapping[str, Sequence[Figures]]) -> dict[str, Any]:
    """The figures that are to be reached."""

    def values(kinds: Sequence[str], name: str) -> list[float]:
        return [row[name] for kind in kinds for row in by_kind.get(kind, ()) if name in row]

    position = values(("cluster",), "position, dies")
    hours = values(("cluster",), "hour exact, not borderline")
    radius = values(RINGS, "radius, percent of its own")
    no_hour = values((*RINGS, "scatter", "full", "none", "repeat"), "hour given")
    return {
        "cluster found": _mean(values(("cluster",), "found")),
        "cluster position within one die": _mean([p <= 1 for p in position]),
        "cluster sector exact": _mean(values(("cluster",), "hour exact")),
        "cluster sector exact, not borderline": _mean(hours),
        "ring found": _mean(values(RINGS, "found")),
        "ring radius within 3 percent of its own": _mean([r <= 3 for r in radius]),
        "ring radius within 3 percent of the wafer's": _mean(
            [r <= 3 for r in values(RINGS, "radius, percent of the wafer's radius")]
        ),
        "arc clock position within one hour": _mean([a <= 30 for a in values(("arc",), "angle, degrees")]),
        "no hour for rings, scatter, full, none": 1 - _mean(no_hour),
        "word right": _mean(values(KINDS, "word right")),
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4) if len(values) else 0.0


def speed(count: int, seed: int) -> dict[str, float]:
    """Wafers of 33x33 cells a second, in one thread: all kinds in turn, ``count`` of them."""
    rng = np.random.default_rng(seed)
    wafers = [plant(KINDS[i % len(KINDS)], rng, shape=MEDIAN_SHAPE)[0] for i in range(count)]
    for dies in wafers[: len(KINDS)]:
        measure(dies)
    wall, processor = time.perf_counter(), time.process_time()
    for dies in wafers:
        measure(dies)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "wafers": count,
        "per_second": round(count / wall, 1),
        "per_processor_second": round(count / processor, 1),
    }


@click.command(context_settings=console.HELP)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--wafers", default=10_000, show_default=True, help="Planted wafers measured.")
@click.option("--seed", default=0, show_default=True)
def main(out: Path | None, wafers: int, seed: int) -> None:
    """Measure planted wafers and compare with their truth.

    Example: python -m benchmarks.planted_geometry -o benchmarks/results/geometry.json
    """
    machine = describe_machine(1)
    timed = speed(min(2000, wafers), seed + 1)
    report = {"machine": machine, "seed": seed, "wafers": wafers, "speed": timed, **accuracy(wafers, seed)}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_suffix(".writing")
        beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        beside.replace(out)
    console.result({"speed": timed, **report["all"]}, as_json=True)


if __name__ == "__main__":
    main()
