"""What calibration on wafer maps is worth: full precision, GPTQ in four ways and rounding to nearest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from calibrate.inputs import Kind
from calibrate.interval import DRAWS, lots_of
from calibrate.judge import accuracy, agreement, intervals, score
from calibrate.layers import round_model
from calibrate.stage import CalibrateSettings, Weigh, draw, load, quantize_checkpoint
from train.artefact import Provenance, folder_digest, is_complete, write_provenance, writing
from train.dataset import DIES, Sample, dataset_task, read_labelled
from train.samples import held_out
from train.scorer import Scores
from wafervlm.errors import DatasetError
from wafervlm.task import Task

BITS = (4, 3)
JSON, TABLE, PICTURE = "comparison.json", "comparison.md", "comparison.png"
OURS = "GPTQ on wafer maps"
WAYS: dict[str, tuple[Kind, Weigh]] = {
    OURS: ("wafers", "answers"),
    "GPTQ on wafer maps, tokens alike": ("wafers", "same"),
    "GPTQ on generic images": ("images", "answers"),
    "GPTQ on text only": ("text", "answers"),
}
NEAREST = "round to nearest"
_OURS, _OTHERS = "#20908c", "#909090"


@dataclass(frozen=True)
class Row:
    """One way to store the weights, judged on the same maps: ``label_agreement`` with full precision,
    ``accuracy``, and ``kl``, the mean divergence in nats of the label distribution from full precision's;
    ``..._low`` and ``..._high`` are the ends of 95 % intervals, over lots where they are known."""

    method: str
    bits: int
    label_agreement: float
    accuracy: float
    kl: float
    label_agreement_low: float
    label_agreement_high: float
    kl_low: float
    kl_high: float


def compare(
    source: Path,
    dataset: Path,
    out: Path,
    settings: CalibrateSettings,
    on: Path | None = None,
    split: str = "test",
) -> list[dict[str, Any]]:
    """Quantize ``source`` in every way at 4 and at 3 bits, judge each on what ``maps_to_judge`` reads, and
    write the table to the folder ``out`` as JSON, Markdown and picture.

    Returns its rows. Raises DatasetError where there are no maps to judge on.
    """
    out = Path(out)
    provenance = _provenance(source, dataset, settings, on, split)
    if out.exists() and is_complete(out, provenance):
        return list(json.loads((out / JSON).read_text(encoding="utf-8"))["rows"])
    samples = maps_to_judge(dataset, on, split)
    task = dataset_task(dataset)
    rows = list(_rows(source, dataset, task, samples, settings))
    with writing(out, overwrite=True) as folder:
        record = {
            "maps": len(samples),
            "part": _part(on, split),
            "group": settings.scheme.group,
            "rows": [asdict(row) for row in rows],
        }
        (folder / JSON).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / TABLE).write_text(markdown(rows, len(samples)), encoding="utf-8")
        draw_rows(rows, folder / PICTURE)
        write_provenance(folder, provenance)
    return [asdict(row) for row in rows]


def maps_to_judge(dataset: Path, on: Path | None, split: str) -> list[Sample]:
    """Part ``split`` of ``on`` where that is a dataset folder, all its labelled maps where it is another
    source, and the tune part of ``dataset`` where it is None. Raises DatasetError where there are none."""
    part = _part(on, split)
    if on is None:
        samples = held_out(dataset, part)
    else:
        samples = read_labelled(on, None if part == "all" else part, spec=dataset_task(dataset).render)
    if not samples:
        raise DatasetError(f"{on or dataset} has no labelled maps to judge on")
    return samples


def markdown(rows: Sequence[Row], maps: int) -> str:
    """The table as Markdown."""
    lines = [
        f"| weights | bits | label agreement (95 %) | accuracy | KL, nats (95 %), {maps} maps |",
        "|---|---:|---:|---:|---:|",
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    agree = f"{row.label_agreement:.2%} ({row.label_agreement_low:.2%} to {row.label_agreement_high:.2%})"
    kl = f"{row.kl:.2g} ({row.kl_low:.2g} to {row.kl_high:.2g})"
    return f"| {row.method} | {row.bits} | {agree} | {row.accuracy:.2%} | {kl} |"


def draw_rows(rows: Sequence[Row], path: Path) -> None:
    """The KL divergence of every quantized row, on a logarithmic scale, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    shown = [row for row in rows if row.kl > 0]
    figure = Figure(figsize=(9.5, 1 + 0.35 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(shown):
        colour = _OURS if row.method == OURS else _OTHERS
        axes.plot(row.kl, place, "o", color=colour, markersize=8)
        text = f"{row.kl:.2g}, {row.label_agreement:.1%} of labels agree"
        axes.annotate(text, (row.kl, place), (9, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(shown)), [f"{row.method}, {row.bits} bit" for row in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xscale("log")
    if shown:
        # A third of the width is kept free for the text of the last point.
        least, most = min(row.kl for row in shown), max(row.kl for row in shown)
        axes.set_xlim(least / 1.5, most * 1.5 * (most / least * 30) ** 0.5)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#e0e0e0")
    axes.set_axisbelow(True)
    axes.set_xlabel("KL divergence of the labels from full precision, nats (less is better)")
    figure.savefig(path, dpi=120)


def _rows(
    source: Path, dataset: Path, task: Task, samples: Sequence[Sample], settings: CalibrateSettings
) -> Iterator[Row]:
    full = load(source, settings)
    stored = 8 * full.model.lm_head.weight.element_size()
    before = score(full, task, samples, "score full precision")
    # It agrees with itself by definition, whatever the maps.
    itself = dict.fromkeys(("label_agreement", "label_agreement_low", "label_agreement_high"), 1.0)
    itself |= dict.fromkeys(("kl", "kl_low", "kl_high"), 0.0)
    yield Row("full precision", stored, accuracy=accuracy(before, samples, task), **itself)
    del full
    maps, _ = draw(dataset, settings)
    for bits in BITS:
        scheme = replace(settings.scheme, bits=bits)
        for name, (kind, weigh) in WAYS.items():
            checkpoint = load(source, settings)
            way = replace(settings, scheme=scheme, kind=kind, weigh=weigh)
            quantize_checkpoint(checkpoint, task, maps, way)
            after = score(checkpoint, task, samples, f"score {name}, {bits} bit")
            yield _judged(name, bits, before, after, task, samples)
        checkpoint = load(source, settings)
        round_model(checkpoint.model, scheme)
        after = score(checkpoint, task, samples, f"score {NEAREST}, {bits} bit")
        yield _judged(NEAREST, bits, before, after, task, samples)


def _judged(
    method: str, bits: int, before: Scores, after: Scores, task: Task, samples: Sequence[Sample]
) -> Row:
    figures = agreement(before, after, task) | intervals(before, after, lots_of(samples), task)
    return Row(method, bits, accuracy=accuracy(after, samples, task), **figures)


def _part(on: Path | None, split: str) -> str:
    """Which part is judged on: "all" of a source that has none."""
    if on is None:
        return "tune"
    return split if (on / DIES).is_file() else "all"


def _provenance(
    source: Path, dataset: Path, settings: CalibrateSettings, on: Path | None, split: str
) -> Provenance:
    inputs = {"checkpoint": folder_digest(source), "dataset": folder_digest(dataset)}
    if on is not None:
        inputs["maps"] = folder_digest(on)
    # With the draws, so that tables from before there were intervals are made anew.
    more = {"part": _part(on, split), "draws": DRAWS}
    return Provenance("compare", inputs, {**asdict(settings), **more}, settings.seed)
