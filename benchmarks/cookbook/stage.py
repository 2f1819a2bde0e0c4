"""The stage: artefacts of a line in, the six-step report out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.assessment.tables import CLAIMS
from benchmarks.assessment.texts import Table, percent, span
from benchmarks.cookbook import before, curation, evaluation, training
from benchmarks.cookbook.artefacts import KINDS, LEAVES, Artefact, choose, places_of
from benchmarks.cookbook.blocks import Block, Card, Page, Sheet, Text
from benchmarks.cookbook.drawing import HTML, MARKDOWN, write_html, write_markdown
from benchmarks.cookbook.lines import Places, shown
from benchmarks.cookbook.material import Material, gather
from benchmarks.cookbook.numbers import Sources
from train.artefact import (
    PROVENANCE,
    Provenance,
    folder_digest,
    is_complete,
    read_provenance,
    refuse_other,
    write_provenance,
    writing,
)
from wafervlm.errors import UsageError
from wafervlm.files import check_writable

STAGE = "report"


@dataclass(frozen=True)
class ReportConfig:
    """What to report: the folder of ``runs`` that artefacts are looked for in, those ``named`` by kind,
    labelled ``maps`` that they were made from, a ``lint`` report; ``command``, the line that this is."""

    runs: Path | None
    named: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    maps: Sequence[Path] = ()
    lint: Path | None = None
    title: str = ""
    template: str = "cookbook"
    command: str = ""

    def __post_init__(self) -> None:
        if self.runs is None and not any(self.named.values()):
            raise UsageError("name a folder of runs, or artefacts, such as --benchmark runs/report")
        for path in (*self.maps, *([self.lint] if self.lint else [])):
            if not path.exists():
                raise UsageError(f"{path} does not exist; check the path")


def write_report(config: ReportConfig, out: Path, *, replace: bool = False) -> tuple[dict[str, Any], bool]:
    """Write report.html, report.md and its pictures to ``out``; return what was found, and whether it was
    written now.

    A complete ``out`` of the same artefacts is left as it is; another report needs ``replace``. Raises
    UsageError, and what reading a broken artefact raises.
    """
    out = Path(out)
    chosen = choose(config.runs, config.named)
    every = [made for group in chosen.values() for made in group]
    places = Places(places_of(every, config.maps), config.maps)
    provenance = _provenance(config, every)
    summary = {kind: [shown(made.path) for made in group] for kind, group in chosen.items()}
    if is_complete(out, provenance):
        return summary, False
    if out.exists():
        _check_replaceable(out, provenance, replace)
    check_writable(out)
    found = gather(chosen, places, lint=config.lint, predict=bool(config.named.get("bundle")))
    found.command = config.command
    page = make_page(found, config.title)
    with writing(out, overwrite=replace) as work:
        write_html(page, work / HTML)
        write_markdown(page, work / MARKDOWN)
        write_provenance(work, provenance)
    return summary, True


def make_page(found: Material, title: str = "") -> Page:
    """The report on what was ``found``."""
    sources = Sources(found.places)
    steps = [
        before.selection(found, sources),
        before.zero_shot(found, sources),
        before.problems(found, sources),
        curation.curation(found, sources),
        training.training(found, sources),
        evaluation.evaluation(found, sources),
    ]
    name = found.report["bundle"]["name"] if found.report else found.task.name
    made = time.strftime("%Y-%m-%d", time.gmtime())
    return Page(
        title=title or f"{name}, before and after",
        about=f"Six steps from the choice of a benchmark to what came of it. Written {made} from what the "
        "stages of the line left. Each figure names the command that made it; a name in capitals there "
        "stands for what is not at hand. What was not measured is said.",
        cards=list(_cards(found)),
        steps=steps,
        commands=sources.commands,
        origins=_origins(found),
        citations=found.report["citations"] if found.report else (),
    )


def _cards(found: Material) -> list[Card]:
    cards: list[Card] = []
    if found.report is not None:
        models = found.report["models"]
        value = f"{percent(models['bundle']['accuracy']['value'])} %"
        if "base" in models:
            value = f"{percent(models['base']['accuracy']['value'])} → {value}"
        note = f"{span(models['bundle']['accuracy'], percent)} on {found.report['maps']['count']:,} maps"
        cards.append(Card("classes named rightly", value, note))
        agreement = f"{percent(found.report['agreement'])} %"
        cards.append(Card("agreement with full precision", agreement, found.report["verdict"]["answer"]))
        times = found.report["latency_ms"]["bundle"]
        cards.append(Card("one call, median", f"{times['p50']:.3g} ms", f"p99 {times['p99']:.3g} ms"))
    if found.words is not None:
        cards += _word_cards(found.words)
    return cards


def _word_cards(words: Mapping[str, Any]) -> list[Card]:
    """What is said of the first set of wafers: the first subject against the last."""
    name = next(iter(words["maps"]))
    figures = [one[name]["claims"] for one in words["subjects"].values()]
    cards = []
    for key in ("precision", "contradiction_rate"):
        shown_values = ["-" if one[key] is None else f"{percent(one[key]['value'])}" for one in figures]
        ends = list(dict.fromkeys([0, len(shown_values) - 1]))
        value = " → ".join(shown_values[end] for end in ends)
        cards.append(Card(CLAIMS[key][0], f"{value} %", f"to reach: {CLAIMS[key][2]} %"))
    return cards


def _origins(found: Material) -> list[Block]:
    rows = []
    for kind, group in found.chosen.items():
        for made in group:
            origins = ", ".join(
                f"{name} {_origin(found, digest)}" for name, digest in made.inputs.items() if digest
            )
            digest = "-" if kind in LEAVES else made.digest[:12]
            rows.append((KINDS[kind].title, shown(made.path), digest, made.created[:10], origins or "-"))
    absent = [about.title for kind, about in KINDS.items() if not found.chosen[kind]]
    note = "A digest stands where what something was made from is not among these."
    header = ("", "folder", "digest", "made", "made from")
    blocks: list[Block] = [Sheet(Table("Artefacts", note, header, rows))]
    if absent:
        blocks.append(Text(f"Not here: {', '.join(absent)}."))
    return blocks


def _origin(found: Material, digest: str) -> str:
    parts = str(digest).split("+")
    paths = [found.places.path(part) for part in parts]
    return "+".join(
        part[:12] if path is None else shown(path) for part, path in zip(parts, paths, strict=True)
    )


def _provenance(config: ReportConfig, every: Sequence[Artefact]) -> Provenance:
    inputs = {
        f"{made.kind} {shown(made.path)}": folder_digest(made.path / PROVENANCE)
        for made in every
        if made.record
    }
    inputs |= {f"maps {shown(path)}": folder_digest(path) for path in config.maps}
    if config.lint is not None:
        inputs["lint"] = folder_digest(config.lint)
    settings = {"template": config.template, "title": config.title}
    return Provenance(STAGE, inputs, {**settings, "predict": bool(config.named.get("bundle"))})


def _check_replaceable(out: Path, wanted: Provenance, replace: bool) -> None:
    record = read_provenance(out) if (out / PROVENANCE).is_file() else {}
    if record.get("stage") != STAGE or not replace:
        if record.get("stage") == STAGE:
            raise UsageError(
                f"{out} holds a report of other artefacts; choose another folder, or give --replace"
            )
        refuse_other(out, wanted)
