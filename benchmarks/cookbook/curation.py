"""Step 4: which maps and texts are taught."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.assessment.texts import Table
from benchmarks.cookbook.artefacts import KINDS, LEAVES, Artefact
from benchmarks.cookbook.before import parts_table
from benchmarks.cookbook.blocks import Block, Fold, Picture, Sheet, Step, Text, Warn
from benchmarks.cookbook.lines import shown
from benchmarks.cookbook.material import Material
from benchmarks.cookbook.numbers import Sources, count, listing, missing, plain, worded
from train.sources import SYNTHETIC
from wafervlm import console

SUSPECTS, PAIRS = 10, 10
DIFFICULTIES = ("easy", "medium", "hard")


def curation(found: Material, sources: Sources) -> Step:
    """Step 4: which maps and texts are taught."""
    blocks: list[Block] = []
    if not found.chosen["dataset"]:
        blocks.append(missing("dataset", "The maps that were trained on are"))
    # First what was trained on.
    taught = {digest for one in found.chosen["adapter"] for digest in one.inputs.values()}
    for made in sorted(found.chosen["dataset"], key=lambda one: not one.names & taught):
        blocks += _dataset(found, made, sources)
    blocks += _cleaned(found, sources)
    blocks += _vqa(found, sources)
    return Step("Data curation", blocks)


def _dataset(found: Material, made: Artefact, sources: Sources) -> Iterator[Block]:
    corrected = made.settings.get("protocol") != "recipe"
    note = (
        "No lot and no map, rotated or mirrored, is in two parts."
        if corrected
        else "The rows that the published scripts take, to the letter: train and test share lots."
    )
    if made.inputs.get("source") == SYNTHETIC:
        yield Warn(f"The maps of {made.path.name} are synthetic: figures say nothing about real wafers.")
    split = found.split(made)
    if split is not None:
        used = ", ".join(KINDS[one.kind].title for one in _made_from(found, made))
        note += f" Made from it: {used}." if used else ""
        yield Sheet(parts_table(split.counts, f"Maps of {shown(made.path)}", note), sources.of(made))
        if split.dropped:
            told = "; ".join(f"{name} {count(n)}" for name, n in split.dropped.items())
            yield Text(f"In no part: {told}.")


def _made_from(found: Material, made: Artefact) -> list[Artefact]:
    every = [one for group in found.chosen.values() for one in group]
    return [one for one in every if one.kind not in LEAVES and made.names & set(one.inputs.values())]


def _cleaned(found: Material, sources: Sources) -> Iterator[Block]:
    made = found.one("cleaned")
    if made is None:
        yield missing("cleaned", "Suspected labels are")
        return
    source, suspects = sources.of(made), found.rows("cleaned", "suspects.csv")
    figures_of = {key: value for key, value in made.parity.items() if not isinstance(value, Mapping)}
    yield listing("Labels that were checked", "", figures_of, source)
    pairs = Counter((row["given"], row["suggested"]) for row in suspects)
    rows = [(*pair, count(n)) for pair, n in pairs.most_common(PAIRS)]
    yield Sheet(Table("What is taken for what", "", ("given", "looks", "suspects"), rows), source)
    columns = ("rank", "id", "part", "given", "suggested", "score", "done", "reason")
    first = [tuple(row[name] for name in columns) for row in suspects[:SUSPECTS]]
    title = f"The first {len(first)} of {count(len(suspects))} suspects"
    yield Sheet(Table(title, "A score is no probability of an error.", columns, first), source)
    sheet = made.path / "sheet.png"
    if sheet.is_file():
        yield Fold(
            "The first suspects as pictures", [Picture("Suspects", "suspects", sheet.read_bytes(), source)]
        )


def _vqa(found: Material, sources: Sources) -> Iterator[Block]:
    made, counts = found.one("vqa"), found.vqa
    if made is None or counts is None:
        yield missing("vqa", "Descriptions, rubrics and questions are")
        return
    parts = {name: values for name, values in counts.items() if name != "rewrite"}
    rows = [("wafers", *(count(one["wafers"]) for one in parts.values()))]
    for what in ("questions", "prompts"):
        kinds = sorted({name.rpartition(", ")[0] for one in parts.values() for name in one[what]})
        rows += [
            (f"{what}: {worded(kind)}", *(_levels(part[what], kind) for part in parts.values()))
            for kind in kinds
        ]
    note = "What is said of the dies is measured on them; causes come from a table and are candidates. "
    note += "Questions, and prompts for reinforcement learning, are counted easy / medium / hard."
    yield Sheet(Table("Texts that are taught", note, ("", *parts), rows), sources.of(made))
    if "rewrite" in counts:
        yield listing("Texts worded anew by a language model", "", counts["rewrite"], sources.of(made))
    if found.lint is not None:
        yield from _lint(
            found.lint, sources.line(console.command("wafervlm", "data", "lint", made.path, "--json"), "lint")
        )


def _levels(counts: Mapping[str, int], kind: str) -> str:
    return " / ".join(count(counts.get(f"{kind}, {level}", 0)) for level in DIFFICULTIES)


def _lint(lint: Mapping[str, Any], source: int) -> Iterator[Block]:
    verdict = "a sound reward" if lint["passed"] else f"no sound reward: {'; '.join(lint['failures'])}"
    yield Text(f"The rubrics are {verdict}.")
    names = list(next(iter(lint["dimensions"].values()), {}))
    rows = [
        (worded(name), *(plain(_value(one[key])) for key in names))
        for name, one in lint["dimensions"].items()
    ]
    header = ("", *(worded(name) for name in names))
    yield Sheet(Table("What answers earn by the rubrics", "", header, rows), source)


def _value(figure: Any) -> Any:
    return figure["value"] if isinstance(figure, Mapping) else figure
