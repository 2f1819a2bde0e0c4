"""What an assessment of words found, as tables and as wafers with what was said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from benchmarks.assessment.measuring import PLANTED
from benchmarks.assessment.tables import tables_of
from benchmarks.assessment.texts import Table
from benchmarks.cookbook.blocks import Block, Example, Fold, Gallery, Said, Sheet, Text
from benchmarks.cookbook.examples import spread
from benchmarks.cookbook.material import Material
from benchmarks.cookbook.numbers import Sources, count, missing
from wafervlm.claims import Verdict

SHOWN = 4
_PARTS = (" by dimension", " by kind", " by label")
_SETS = {PLANTED: "planted wafer"}


def claim_table(words: Mapping[str, Any], names: Sequence[str], source: int | None) -> Iterator[Block]:
    """The figures of the claims of the subjects ``names``, a table for each set of wafers."""
    part = {**words, "subjects": {name: words["subjects"][name] for name in names}, "differences": []}
    for table in tables_of({**part, "judge": None}):
        if table.title.startswith("Claims") and not table.title.endswith(_PARTS):
            yield Sheet(table, source)


def claims_by_kind(words: Mapping[str, Any], name: str, source: int | None) -> Iterator[Block]:
    """Which kinds of claims the subject ``name`` gets wrong, the most contradicted first."""
    found = words["subjects"][name]
    rows, said = [], 0
    for where, figures in ((key, found[key]["claims"]) for key in words["maps"]):
        for kind, one in figures["by_kind"].items():
            told = [int(one[verdict.value]) for verdict in Verdict]
            said += sum(told)
            rows.append((one[Verdict.CONTRADICTED.value], (kind, _SETS.get(where, "labelled map"), *told)))
    if not said:
        yield Text(f"{name} makes no claim that could be held against the dies.")
        return
    rows.sort(key=lambda row: -row[0])
    header = ("kind of claim", "about", *(verdict.value for verdict in Verdict))
    cells = [tuple(count(value) if isinstance(value, int) else value for value in row) for _, row in rows]
    yield Sheet(Table(f"What {name} claims", "", header, cells), source)


def spoken(found: Material, sources: Sources) -> Iterator[Block]:
    """All figures of the words, side by side, and examples."""
    if found.words is None:
        yield missing("words", "Figures of what is said in words are")
        return
    source = sources.of(found.one("words"))
    parts = []
    for table in tables_of(found.words):
        sheet = Sheet(table, source)
        if table.title.endswith(_PARTS):
            parts.append(sheet)
        else:
            yield sheet
    if found.words.get("judge_note"):
        yield Text(f"{found.words['judge_note'].capitalize()}.")
    yield Fold("Claims by dimension, kind and class", parts)
    yield from _galleries(found, source)


def _galleries(found: Material, source: int | None) -> Iterator[Block]:
    names = list(found.words["subjects"]) if found.words else []
    if not names or not found.answers:
        return
    first, last = names[0], names[-1]
    said = {(line["subject"], line["maps"], line["id"]): line for line in found.answers}
    lines = [line for line in found.answers if line["subject"] == last]
    wrong = [line for line in lines if _told(line)[Verdict.CONTRADICTED.value]]
    sound = [line for line in lines if line["claims"] and not _told(line)[Verdict.CONTRADICTED.value]]
    chosen = {
        "Words that hold": _one_of_each(sound, Verdict.SUPPORTED),
        "Words that the dies contradict": _one_of_each(wrong, Verdict.CONTRADICTED),
    }
    notes = {
        "Words that hold": f"{len(sound)} of {len(lines)} descriptions of {last} make claims and none is "
        "contradicted.",
        "Words that the dies contradict": f"{len(wrong)} of {len(lines)} descriptions of {last} hold a claim "
        "that is contradicted.",
    }
    for title, some in chosen.items():
        if not some:
            yield Text(f"{title}: {notes[title]}")
            continue
        examples = [
            Example(
                found.wafers.get((line["maps"], line["id"])),
                line["label"],
                f"{_SETS.get(line['maps'], 'map')} {line['id']}".replace("planted wafer planted", "planted"),
                [
                    _said(one)
                    for name in dict.fromkeys((first, last))
                    if (one := said.get((name, line["maps"], line["id"]))) is not None
                ],
            )
            for line in some
        ]
        yield Gallery(title, notes[title], examples, source=source, wide=True)


def _told(line: Mapping[str, Any]) -> Counter[str]:
    return Counter(claim["verdict"] for claim in line["claims"])


def _said(line: Mapping[str, Any]) -> Said:
    told, wrong = _told(line), Verdict.CONTRADICTED.value
    counts = ", ".join(f"{told[verdict.value]} {verdict.value}" for verdict in Verdict if told[verdict.value])
    notes = [counts or "no claim that could be checked"]
    notes += [
        f"contradicted: “{claim['text']}”" + (f" ({claim['why']})" if claim["why"] else "")
        for claim in line["claims"]
        if claim["verdict"] == wrong
    ]
    right = None if not line["claims"] else not told[wrong]
    return Said(line["subject"], line["text"] or "(nothing)", right, notes)


def _one_of_each(lines: Sequence[Mapping[str, Any]], verdict: Verdict) -> list[Mapping[str, Any]]:
    """The lines with most claims of ``verdict``."""
    return spread(sorted(lines, key=lambda line: -_told(line)[verdict.value]), itemgetter("label"), SHOWN)
