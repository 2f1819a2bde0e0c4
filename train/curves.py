"""The log of a training as a table and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_TUNE = ("tune_accuracy", "tune_recall", "tune_loss", "tune_words_loss")
_MEASURED = ("loss", "learning_rate", "grad_norm", *_TUNE)
COLUMNS = ("step", "samples", "seconds", *_MEASURED)
Row = Mapping[str, float]


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` as CSV with COLUMNS; what a row lacks stays empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows([{key: _short(value) for key, value in row.items()} for row in rows])


def read_log(path: Path) -> list[dict[str, float]]:
    """Read what ``write_log`` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def draw_curves(path: Path, rows: Sequence[Row], title: str = "") -> None:
    """Draw loss, accuracy on the held-out maps and learning rate over the steps as a PNG."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracies, rates = figure.subplots(1, 3)
    _line(losses, rows, "loss", "training, answer tokens")
    _line(losses, rows, "tune_loss", "held-out, label", marker="o")
    _line(losses, rows, "tune_words_loss", "held-out, words", marker="o")
    if any(row.get("loss", 0) > 0 for row in rows):
        losses.set_yscale("log")
    _line(accuracies, rows, "tune_accuracy", "accuracy", marker="o")
    _line(accuracies, rows, "tune_recall", "mean class recall", marker="o")
    _line(rates, rows, "learning_rate", "")
    for axes, name in ((losses, "loss"), (accuracies, "held-out maps"), (rates, "learning rate")):
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _line(axes: Axes, rows: Sequence[Row], key: str, label: str, marker: str = "") -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, linewidth=1.2, label=label)


def _short(value: float) -> float | str:
    return f"{value:.6g}" if isinstance(value, float) else value
