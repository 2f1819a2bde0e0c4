"""Step 6: before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import figures
from benchmarks.assessment.texts import Table, percent, span
from benchmarks.cookbook.before import BASE, BUNDLE, MERGED
from benchmarks.cookbook.blocks import Block, Counts, Picture, Sheet, Step, Text
from benchmarks.cookbook.examples import answered
from benchmarks.cookbook.material import Material
from benchmarks.cookbook.numbers import Sources, count, missing, points, shared
from benchmarks.cookbook.spoken import spoken
from benchmarks.report import largest_confusions

_VERDICTS = {
    "not worse": "not worse than full precision",
    "worse": "worse than full precision",
    "undecided": "undecided",
}


def evaluation(found: Material, sources: Sources) -> Step:
    """Step 6: before and after."""
    blocks: list[Block] = []
    report = found.report
    if report is None:
        blocks.append(missing("benchmark", "Accuracy before and after is"))
    else:
        blocks += _classes(report, sources.of(found.one("benchmark")))
    blocks += answered(found, sources)
    if report is not None:
        blocks += _speed(report, sources.of(found.one("benchmark")))
    blocks += spoken(found, sources)
    return Step("Re-evaluation", blocks)


def _classes(report: Mapping[str, Any], source: int | None) -> Iterator[Block]:
    models, labels = report["models"], report["task"]["labels"]
    names = [name for name in (BASE, MERGED, BUNDLE) if name in models]
    rows = [
        ("accuracy", *(span(models[name]["accuracy"], percent) for name in names)),
        ("mean recall of the classes", *(shared(models[name], "mean_class_recall") for name in names)),
        ("calibration error", *(shared(models[name]["calibration"], "ece") for name in names)),
    ]
    if report["natural"]:
        others = report["natural"]["models"]
        cells = [span(others[name]["accuracy"], percent) if name in others else "-" for name in names]
        rows.append(("accuracy, natural mix", *cells))
    header = ("%", *(figures.NAMES[name] for name in names))
    yield Picture("Accuracy before and after", "accuracy", figures.accuracy_bars(models), source)
    yield Sheet(Table("Before and after", "", header, rows), source, strong=len(names))
    found = report["verdict"]
    yield Text(
        f"The bundle is {_VERDICTS[found['answer']]}: accuracy differs by {100 * found['difference']:+.2f} "
        f"points [{100 * found['low']:+.2f}, {100 * found['high']:+.2f}], against a margin of "
        f"{100 * found['margin']:.2g} stated beforehand; labels agree on {percent(report['agreement'])} %."
    )
    yield Picture("Recall by class", "recall", figures.recall_dots(models, labels), source)
    yield _by_class(models, labels, source)
    yield Counts("What the bundle answers", labels, models[BUNDLE]["confusion"], source)
    wrong = largest_confusions(report)
    pairs = ", ".join(f"{one['truth']} as {one['answer']} ({one['count']} of {one['of']})" for one in wrong)
    yield Text(
        f"Still taken for something else: {pairs}." if pairs else "The bundle makes no error on these maps."
    )


def _by_class(models: Mapping[str, Any], labels: list[str], source: int | None) -> Sheet:
    rows = []
    for label in labels:
        after = models[BUNDLE]["per_class"][label]
        before = models[BASE]["per_class"][label] if BASE in models else None
        gain = [] if before is None else [shared(before, "recall")]
        change = [] if before is None else [points(after["recall"], before["recall"])]
        rows.append(
            (label, count(after["count"]), *gain, shared(after, "recall"), *change, percent(after["f1"]))
        )
    first, change_of = (["recall before"], ["points"]) if BASE in models else ([], [])
    header = ("%", "maps", *first, "recall after", *change_of, "F1 after")
    return Sheet(Table("By class", "", header, rows), source, strong=2 + len(first))


def _speed(report: Mapping[str, Any], source: int | None) -> Iterator[Block]:
    rows = [
        (
            figures.CONTENDER_NAMES[name],
            *(f"{times[p]:.1f}" for p in ("p50", "p90", "p99")),
            f"{report['latency']['ratios'][name]['call']:.2f}",
        )
        for name, times in report["latency_ms"].items()
    ]
    machine = report["machine"]
    note = f"Milliseconds of a whole call; {machine['cpu']}, {machine['threads']} threads."
    header = ("", "p50", "p90", "p99", "times the bundle's")
    yield Sheet(Table("What an answer takes", note, header, rows), source)
