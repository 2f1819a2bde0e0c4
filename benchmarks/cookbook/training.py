"""Step 5: what was trained, merged, quantized and exported."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.assessment.texts import Table, percent
from benchmarks.cookbook.artefacts import Artefact
from benchmarks.cookbook.blocks import Block, Fold, Picture, Sheet, Step, Warn
from benchmarks.cookbook.material import Material, read_rows
from benchmarks.cookbook.numbers import Sources, count, listing, missing, plain, shared
from train.sft import CURVES, LOG


def training(found: Material, sources: Sources) -> Step:
    """Step 5: what was trained, merged, quantized and exported."""
    blocks: list[Block] = []
    if not found.chosen["adapter"]:
        blocks.append(missing("adapter", "A fine-tuning is"))
    for number, made in enumerate(found.chosen["adapter"], 1):
        blocks += _trained(made, f"curves-{number}", "Fine-tuning", sources)
    if not found.chosen["rl"]:
        blocks.append(missing("rl", "Reinforcement learning is"))
    for made in found.chosen["rl"]:
        blocks += _reinforced(made, sources)
    for kind, title in (("merged", "Merging"), ("gptq", "Quantizing")):
        blocks += _measured(found, kind, title, sources)
    blocks += _compared(found, sources)
    blocks += _exported(found, sources)
    return Step("Post-training", blocks)


def _trained(made: Artefact, name: str, title: str, sources: Sources) -> Iterator[Block]:
    source = sources.of(made)
    yield listing(f"{title}: {made.path.name}", "Of the best step, on held-out maps.", made.parity, source)
    log = [row for row in read_rows(made.path / LOG) if row.get("tune_accuracy")]
    columns = [key for key in (log[0] if log else {}) if any(row[key] for row in log)]
    if log:
        rows = [tuple(row[key] for key in columns) for row in log]
        header = tuple(key.replace("_", " ") for key in columns)
        yield Fold(
            f"Every evaluation of {made.path.name}", [Sheet(Table("Evaluations", "", header, rows), source)]
        )
    curves = made.path / CURVES
    if curves.is_file():
        yield Picture(f"{title}: {made.path.name}, curves", name, curves.read_bytes(), source)
    yield Fold(f"Settings of {made.path.name}", [listing("Settings", "", made.settings, source)])


def _reinforced(made: Artefact, sources: Sources) -> Iterator[Block]:
    parity = made.parity
    if parity.get("best_step") == 0:
        yield Warn(
            f"No step of {made.path.name} was better on held-out prompts than the start: it did not help."
        )
    rows = [
        (name, plain(parity.get(f"start_{key}")), plain(parity.get(f"tune_{key}")))
        for key, name in (("reward", "reward on held-out prompts"), ("accuracy", "accuracy on held-out maps"))
    ]
    header = ("", "before", f"best step, {plain(parity.get('best_step'))}")
    yield Sheet(Table("Before and after reinforcement learning", "", header, rows), sources.of(made))
    yield from _trained(made, "curves-rl", "Reinforcement learning", sources)


def _measured(found: Material, kind: str, title: str, sources: Sources) -> Iterator[Block]:
    made = found.one(kind)
    if made is None:
        yield missing(kind, f"{title} is")
        return
    note = "Measured when it was made." if kind == "merged" else "Against full precision, on held-out maps."
    yield listing(f"{title}: {made.path.name}", note, made.parity, sources.of(made))


def _compared(found: Material, sources: Sources) -> Iterator[Block]:
    table, made = found.json("comparison", "comparison.json"), found.one("comparison")
    if made is None or table is None:
        return
    rows = [
        (
            row["method"],
            plain(row["bits"]),
            shared(row, "label_agreement"),
            percent(row["accuracy"]),
            f"{row['kl']:.2g} [{row['kl_low']:.2g}, {row['kl_high']:.2g}]",
        )
        for row in table["rows"]
    ]
    header = ("weights", "bits", "same label, %", "accuracy, %", "KL, nats")
    note = f"On {count(table['maps'])} maps, against full precision."
    yield Sheet(Table("Ways to quantize", note, header, rows), sources.of(made))


def _exported(found: Material, sources: Sources) -> Iterator[Block]:
    made, about = found.one("bundle"), found.report["bundle"] if found.report else None
    if about is None and made is None:
        yield missing("bundle", "The bundle is")
        return
    if about is not None:
        told = {
            "name": about["name"],
            "digest": about["digest"][:12],
            "precision": about["graph"]["precision"],
        }
        told |= {"MiB": about["bytes"] / 2**20, "temperature": about["temperature"], **about["parity"]}
        yield listing("The bundle that was judged", "", told, sources.of(made))
    elif made is not None:
        yield listing("The bundle", "", {"digest": made.digest[:12], **made.parity}, sources.of(made))
