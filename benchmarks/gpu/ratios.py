"""Ratios between the rows of a result, and the tables that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
GENERATE, FORWARD, RECORDED = "generate", "forward", "forward-captured"


def ratios(rows: Sequence[Row]) -> list[Row]:
    """For each timed pass: its median over both floors, and how many times its median goes into those of
    generate and of one captured forward at the same shape and batch. None where the other row is missing."""
    good = [row for row in rows if row.get("status") == "ok"]
    passes = {(r["shape"], r["batch"], r["pass"]): _p50(r) for r in good if r.get("kind") == "pass"}
    floors = {(r["shape"], r["batch"]): r for r in good if r.get("kind") == "floor"}
    found = []
    for (shape, batch, name), p50 in passes.items():
        floor = floors.get((shape, batch), {})
        found.append(
            {
                "shape": shape,
                "batch": batch,
                "pass": name,
                "p50_ms": p50,
                "over_full_precision_floor": _over(p50, floor.get("full_precision_ms")),
                "over_quantized_floor": _over(p50, floor.get("quantized_ms")),
                "generate_over_it": _over(passes.get((shape, batch, GENERATE)), p50),
                "forward_over_it": _over(passes.get((shape, batch, FORWARD)), p50),
                "forward_captured_over_it": _over(passes.get((shape, batch, RECORDED)), p50),
            }
        )
    return found


def ratio_table(rows: Sequence[Row]) -> list[str]:
    """Lines for people: one for each pass, by shape and batch, and one for each row that is not there."""
    by_key = {(r["shape"], r["batch"], r["pass"]): r for r in rows if r.get("kind") == "pass"}
    header = f"{'shape':<6} {'B':>2}  {'pass':<26} {'p50 ms':>9} {'ms/map':>8} {'/floor':>7} {'/q.floor':>8}"
    lines = [header + f" {'gen/':>7} {'fwd/':>6} {'cap/':>6} {'max diff':>9} {'agree':>6} {'J/map':>7}"]
    for ratio in ratios(rows):
        row = by_key[ratio["shape"], ratio["batch"], ratio["pass"]]
        parity, energy = row.get("parity") or {}, row.get("energy") or {}
        lines.append(
            f"{ratio['shape']:<6} {ratio['batch']:>2}  {ratio['pass']:<26} {ratio['p50_ms']:>9.3f}"
            f" {ratio['p50_ms'] / ratio['batch']:>8.3f}"
            f" {_cell(ratio['over_full_precision_floor'], 7)} {_cell(ratio['over_quantized_floor'], 8)}"
            f" {_cell(ratio['generate_over_it'], 7, 1)} {_cell(ratio['forward_over_it'], 6, 1)}"
            f" {_cell(ratio['forward_captured_over_it'], 6)}"
            f" {_cell(parity.get('max_abs_difference'), 9, 4)} {_cell(parity.get('label_agreement'), 6)}"
            f" {_cell(energy.get('joules_per_map'), 7)}"
        )
    for row in rows:
        if row.get("kind") == "floor" and row.get("status") == "ok":
            lines.append(
                f"{row['shape']:<6} {row['batch']:>2}  {'floor':<26} {row['full_precision_ms']:>9.3f}"
                f"   quantized {row['quantized_ms']:.3f} ms, {row['bandwidth_gb_s']:.0f} GB/s,"
                f" {row['square_tflop_s']:.0f} TFLOP/s"
            )
        if row.get("status") != "ok":
            lines.append(f"{row['key']}: {row['status']}")
    return lines


def profile_table(row: Row) -> list[str]:
    """Lines for people: the classes of kernels of one profile."""
    what = f"{row['shape']} batch {row['batch']} {row['pass']}"
    classes = [
        f"  {kind['name']:<22} {kind['ms']:>8.3f} ms {kind['share']:>6.1%} {kind['count']:>6}"
        for kind in row["classes"]
    ]
    return [
        f"{what}: {row['span_ms']:.3f} ms, {row['kernels']} kernels, gaps {row['gaps_ms']:.3f} ms",
        *classes,
    ]


def _p50(row: Row) -> float:
    return float(row["latency_ms"]["p50"])


def _over(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _cell(value: float | None, width: int, digits: int = 2) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
