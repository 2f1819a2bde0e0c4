"""The figures of a report, as SVG text. Colours are of the Okabe-Ito set, which colour-blind readers can
tell apart; every bar carries its number."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

P = ParamSpec("P")

INK, FAINT, GRID = "#212529", "#6c757d", "#dee2e6"
COLOURS = {"base": "#999999", "reference": "#0072b2", "bundle": "#d55e00"}
NAMES = {"base": "zero-shot base", "reference": "fine-tuned, full precision", "bundle": "bundle, as deployed"}
CONTENDER_NAMES = {
    "bundle": "bundle, as deployed",
    "static_full_precision": "our static graph, full precision",
    "reference_one_forward": "transformers, one forward",
    "reference_generate": "transformers, generate",
    "openvino": "OpenVINO, same ONNX",
}
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": INK,
    # The same figure gives the same bytes.
    "svg.hashsalt": "wafervlm",
}


def _styled(draw: Callable[P, str]) -> Callable[P, str]:
    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def accuracy_bars(models: Mapping[str, Any]) -> str:
    """Accuracy of each model with its 95 % interval."""
    figure = _figure(7.4, 0.55 + 0.42 * len(models))
    axes = figure.subplots()
    for row, (name, figures) in enumerate(models.items()):
        found = figures["accuracy"]
        value, low, high = (100 * found[key] for key in ("value", "low", "high"))
        axes.barh(row, value, 0.6, color=COLOURS[name])
        error = [[max(value - low, 0)], [max(high - value, 0)]]
        axes.errorbar(value, row, xerr=error, color=INK, capsize=3, linewidth=1)
        axes.text(101.5, row, f"{value:.1f}  [{low:.1f}, {high:.1f}]", va="center")
    axes.set(xlim=(0, 100), xlabel="accuracy, %, with 95 % interval", yticks=range(len(models)))
    axes.set_yticklabels([NAMES[name] for name in models])
    axes.invert_yaxis()
    return _svg(figure, axes, "x")


@_styled
def recall_dots(models: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Recall of each class for each model, with Wilson's 95 % interval."""
    figure = _figure(7.4, 0.8 + 0.42 * len(labels))
    axes = figure.subplots()
    offsets = np.linspace(-0.22, 0.22, len(models)) if len(models) > 1 else [0.0]
    for (name, figures), offset in zip(models.items(), offsets, strict=True):
        rows = [figures["per_class"][label] for label in labels]
        values = np.array([100 * row["recall"] for row in rows])
        low = np.array([100 * row["recall_low"] for row in rows])
        high = np.array([100 * row["recall_high"] for row in rows])
        error = np.maximum([values - low, high - values], 0)
        place = np.arange(len(labels)) + offset
        axes.errorbar(
            values,
            place,
            xerr=error,
            fmt="o",
            markersize=4,
            linewidth=1,
            color=COLOURS[name],
            label=NAMES[name],
        )
    axes.set(xlim=(-2, 102), xlabel="recall, %, with 95 % interval", yticks=range(len(labels)))
    axes.set_yticklabels(labels)
    axes.invert_yaxis()
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.09), ncols=len(models), frameon=False, fontsize=8.5
    )
    return _svg(figure, axes, "x")


@_styled
def reliability_curve(calibration: Mapping[str, Any]) -> str:
    """Accuracy against confidence by bins, and how many maps each bin has."""
    figure = _figure(4.6, 4.2)
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration["bins"]
    confidence = [100 * one["confidence"] for one in bins]
    curve.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle="--")
    curve.plot(
        confidence, [100 * one["accuracy"] for one in bins], "o-", color=COLOURS["bundle"], markersize=4
    )
    curve.set(xlim=(0, 101), ylim=(0, 103), ylabel="right, %")
    note = f"expected calibration error {100 * calibration['ece']:.1f} %"
    curve.text(99, 3, note, ha="right", color=FAINT)
    counts.bar(confidence, [one["count"] for one in bins], 4, color=COLOURS["bundle"])
    counts.set(xlabel="confidence, %", ylabel="maps")
    counts.grid(axis="y", color=GRID, linewidth=0.6)
    counts.set_axisbelow(True)
    return _svg(figure, curve, "both")


@_styled
def latency_bars(latency_ms: Mapping[str, Any]) -> str:
    """Median milliseconds of each contender on a logarithmic scale, with marks at p90 and p99."""
    figure = _figure(7.4, 0.9 + 0.42 * len(latency_ms))
    axes = figure.subplots()
    for row, (name, found) in enumerate(latency_ms.items()):
        colour = COLOURS["bundle"] if name == "bundle" else COLOURS["reference"]
        axes.barh(row, found["p50"], 0.55, color=colour)
        axes.plot([found["p50"], found["p99"]], [row, row], color=INK, linewidth=1)
        axes.plot(found["p90"], row, "|", color=INK, markersize=9)
        axes.plot(found["p99"], row, "|", color=INK, markersize=13)
        axes.text(found["p99"] * 1.12, row, f"{found['p50']:.3g} ms", va="center")
    smallest = min(found["p50"] for found in latency_ms.values())
    largest = max(found["p99"] for found in latency_ms.values())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(
        xlim=(smallest / 4, largest * 2.2),
        xlabel="milliseconds for a whole call, log scale: bar p50, marks p90 and p99",
    )
    axes.set_yticks(range(len(latency_ms)), [CONTENDER_NAMES[name] for name in latency_ms])
    axes.invert_yaxis()
    return _svg(figure, axes, "x")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure, axes: Axes, grid: Any) -> str:
    axes.grid(axis=grid, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    # An XML prologue has no place inside a page.
    return text[text.index("<svg") :]
