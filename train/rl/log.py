"""The log of a reinforcement learning as a table and as a picture."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = Mapping[str, float]

# The trainer's name of a figure to ours.
_NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "reward": "reward",
    "reward_std": "reward_std",
    "rubric": "rubric",
    "claims": "claims",
    "format": "format",
    "zero_variance": "zero_variance",
    "clip_ratio/region_mean": "clip_ratio",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "entropy": "entropy",
    "kl": "kl",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut",
}
_JUDGED = ("reward", "rubric", "claims", "format", "precision", "contradictions", "claims_said", "length")
_CLASSES = ("accuracy", "recall", "loss")
COLUMNS = (
    *("step", "prompts", "seconds", "level"),
    *_NAMES.values(),
    *(f"tune_{name}" for name in (*_JUDGED, *_CLASSES)),
)


def kept_metrics(logs: Mapping[str, float | None]) -> dict[str, float]:
    """Those of the trainer's figures that go into the log, by our names."""
    return {ours: float(value) for name, ours in _NAMES.items() if (value := logs.get(name)) is not None}


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` as CSV with COLUMNS; what a row lacks stays empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows([{key: _short(value) for key, value in row.items()} for row in rows])


def draw_curves(path: Path, rows: Sequence[Row], title: str = "") -> None:
    """Draw the reward in training and on held-out prompts, what the rounds taught, and what the answers
    claim, over the steps, as a PNG. Where the difficulty rises a line stands."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    rewards, rounds, claims, classes = figure.subplots(1, 4)
    _line(rewards, rows, "reward", "training, drawn")
    _line(rewards, rows, "tune_reward", "held-out, greedy", marker="o")
    for key, label in (("zero_variance", "groups all alike"), ("clip_ratio", "answers clipped")):
        _line(rounds, rows, key, label)
    for key, label in (("tune_precision", "precision"), ("tune_contradictions", "contradicted")):
        _line(claims, rows, key, label, marker="o")
    _line(classes, rows, "tune_accuracy", "accuracy", marker="o")
    _line(classes, rows, "tune_recall", "mean class recall", marker="o")
    named = (
        (rewards, "reward"),
        (rounds, "share"),
        (claims, "held-out claims"),
        (classes, "held-out classes"),
    )
    for axes, name in named:
        for step in _rises(rows):
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def mean_of(rows: Sequence[Row], key: str) -> float | None:
    """The mean of ``key`` over the rows that have it, None without any."""
    found = [row[key] for row in rows if key in row]
    return sum(found) / len(found) if found else None


def _rises(rows: Sequence[Row]) -> list[float]:
    levels = [(row["step"], row["level"]) for row in rows if "level" in row]
    return [step for (_, before), (step, after) in itertools.pairwise(levels) if after > before]


def _line(axes: Axes, rows: Sequence[Row], key: str, label: str, marker: str = "") -> None:
    points = [(row["step"], row[key]) for row in rows if key in row]
    if points:
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, linewidth=1.2, label=label)


def _short(value: float) -> float | str:
    return f"{value:.6g}" if isinstance(value, float) else value
