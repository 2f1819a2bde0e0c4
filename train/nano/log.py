"""The log of a base's training, and its curve."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

LOG = "log.csv"
COLUMNS = ("step", "part", "loss", "seconds")
PARTS = {"sight": "vision tower: smooth L1", "questions": "questions: nats per answer token"}
Row = dict[str, str]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the log as CSV with COLUMNS."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """Read what ``write_rows`` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_curve(rows: Sequence[Row], picture: Path) -> None:
    """Draw the loss of both parts over the steps of the log, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (part, name), colour in zip(PARTS.items(), ("#440154", "#20908c"), strict=True):
        kept = [row for row in rows if row["part"] == part]
        steps, losses = [int(row["step"]) for row in kept], [float(row["loss"]) for row in kept]
        axes.plot(steps, losses, marker=".", color=colour, label=name)
    axes.set(title="nano's base", xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
