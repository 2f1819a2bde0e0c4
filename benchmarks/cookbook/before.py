"""Steps 1 to 3: what is judged on, what the base answers, and what is wrong with that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import figures
from benchmarks.assessment.texts import Table, percent, span
from benchmarks.cookbook.blocks import Block, Counts, Facts, Missing, Sheet, Step, Text, Warn
from benchmarks.cookbook.material import Material
from benchmarks.cookbook.numbers import Sources, count, missing, shared
from benchmarks.cookbook.spoken import claim_table, claims_by_kind
from benchmarks.report import base_answers, largest_confusions
from train.split_files import PARTS

BASE, MERGED, BUNDLE = "base", "reference", "bundle"


def selection(found: Material, sources: Sources) -> Step:
    """Step 1: the maps and questions that everything is judged on."""
    blocks: list[Block] = []
    report, task = found.report, found.task
    if report is None:
        blocks.append(missing("benchmark", "The maps that classes are judged on are"))
    else:
        blocks += _judged_on(found, report, sources)
    blocks.append(
        Facts(
            [
                ("asked", task.prompt),
                ("answered, as in", task.answer(task.labels[0])),
                ("image", f"{task.render.height} x {task.render.width} pixels, {task.order}"),
                ("task", f"{task.name}, {task.digest}"),
            ]
        )
    )
    if found.words is None:
        blocks.append(missing("words", "The wafers that words are judged on are"))
    else:
        sets = {"real": "labelled maps, whose truth is measured on their dies"}
        sets["planted"] = "planted wafers, whose truth comes from the generator that drew them"
        told = [f"{count(n)} {sets[name]}" for name, n in found.words["maps"].items()]
        blocks.append(Text(f"What is said in words is judged on {'; and on '.join(told)}."))
    return Step("Benchmark selection", blocks)


def _judged_on(found: Material, report: Mapping[str, Any], sources: Sources) -> list[Block]:
    labels, source = report["task"]["labels"], sources.of(found.one("benchmark"))
    sets = {"judged on": report["maps"]}
    if report["natural"]:
        sets["natural mix"] = report["natural"]["maps"]
    rows = [
        (
            name,
            *(count(maps["classes"][label]) for label in labels),
            count(maps["count"]),
            count(maps["lots"]),
        )
        for name, maps in sets.items()
    ]
    table = Table("Maps that are judged on", "", ("", *labels, "all", "lots"), rows)
    note = "All intervals are of 95 % and resample lots, since wafers of a lot resemble each other."
    blocks: list[Block] = [Sheet(table, source), Text(note)]
    if report["quick"]:
        blocks.insert(0, Warn("A quick look at few maps: run the benchmark without --quick for figures."))
    return blocks


def zero_shot(found: Material, sources: Sources) -> Step:
    """Step 2: what the base answers before it is taught."""
    blocks: list[Block] = []
    report, taken = found.report, found.zero_shot
    base = report["models"].get(BASE) if report else None
    if report is not None and base is not None:
        labels = report["task"]["labels"]
        chance = f"Naming one class at random would give {percent(1 / len(labels))} %."
        blocks += [Text(chance), _models({BASE: base}, taken, sources.of(found.one("benchmark")))]
        blocks.append(_recalls(base, labels, sources.of(found.one("benchmark"))))
    elif taken is not None:
        blocks.append(_models({BASE: taken}, taken, sources.of(found.one("zero_shot"))))
    else:
        text = "The base was not judged: give wafervlm benchmark its checkpoint with --base."
        blocks.append(missing("benchmark", "The base's answers are") if report is None else Missing(text))
    if found.words is not None and found.untaught is not None:
        blocks += claim_table(found.words, [found.untaught], sources.of(found.one("words")))
    elif found.words is not None:
        blocks.append(
            Missing("The base was not asked in words: wafervlm benchmark --words --subject base=BASE.")
        )
    return Step("Zero-shot evaluation", blocks)


def _models(
    models: Mapping[str, Mapping[str, Any]], taken: Mapping[str, Any] | None, source: int | None
) -> Sheet:
    rows = [
        ("accuracy", *(span(one["accuracy"], percent) for one in models.values())),
        ("mean recall of the classes", *(shared(one, "mean_class_recall") for one in models.values())),
        ("calibration error", *(shared(one["calibration"], "ece") for one in models.values())),
    ]
    if taken is not None and "in_set_mass" in taken:
        rows.append(
            ("probability that the whole vocabulary puts on the labels", percent(taken["in_set_mass"]))
        )
    header = ("%", *(figures.NAMES[name] for name in models))
    return Sheet(Table("Before it is taught", "", header, rows), source)


def _recalls(base: Mapping[str, Any], labels: list[str], source: int | None) -> Sheet:
    rows = [
        (label, count(row["count"]), percent(row["precision"]), shared(row, "recall"), percent(row["f1"]))
        for label in labels
        for row in [base["per_class"][label]]
    ]
    return Sheet(Table("The base by class", "", ("%", "maps", "precision", "recall", "F1"), rows), source)


def problems(found: Material, sources: Sources) -> Step:
    """Step 3: what is wrong with the answers of the base."""
    blocks: list[Block] = []
    report = found.report
    if report is None or BASE not in report["models"]:
        blocks.append(Missing("Without answers of the base there is nothing to analyse in its classes."))
    else:
        blocks += _wrong_classes(found, report, sources)
    if found.words is not None and found.untaught is not None:
        blocks += claims_by_kind(found.words, found.untaught, sources.of(found.one("words")))
    return Step("Problem analysis", blocks)


def _wrong_classes(found: Material, report: Mapping[str, Any], sources: Sources) -> list[Block]:
    base, labels, n = report["models"][BASE], report["task"]["labels"], report["maps"]["count"]
    source = sources.of(found.one("benchmark"))
    given = base_answers(report)
    told = ", ".join(f"{label} {percent(times / n)} %" for label, times in given[:4])
    never = [label for label in labels if label not in dict(given)]
    text = f"Of all answers {told}" + (", and others less often." if len(given) > 4 else ".")
    if never:
        text += f" Never answered: {', '.join(never)}."
    unseen = [label for label in labels if base["per_class"][label]["recall"] == 0]
    if unseen:
        text += f" Not one map is recognised of {', '.join(unseen)}."
    wrong = largest_confusions(report, model=BASE)
    pairs = ", ".join(f"{one['truth']} as {one['answer']} ({one['count']} of {one['of']})" for one in wrong)
    blocks: list[Block] = [Text(text)]
    if pairs:
        blocks.append(Text(f"Taken for something else most often: {pairs}."))
    blocks.append(Counts("What the base answers", labels, base["confusion"], source))
    return blocks


def parts_table(counts: Mapping[str, Mapping[str, int]], title: str, note: str) -> Table:
    """Maps by part and class."""
    parts = [part for part in PARTS if part in counts] + [part for part in counts if part not in PARTS]
    labels = sorted({label for part in parts for label in counts[part]})
    rows = [
        (part, *(count(counts[part].get(label, 0)) for label in labels), count(sum(counts[part].values())))
        for part in parts
    ]
    return Table(title, note, ("", *labels, "all"), rows)
