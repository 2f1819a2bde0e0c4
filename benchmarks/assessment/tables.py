"""The figures as tables, in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.assessment.tables_of_judge import judge_summary, judge_tables, judge_values
from benchmarks.assessment.texts import Table, number, percent, span

# What each figure is called, how it is shown, and what is to be reached.
CLAIMS = {
    "precision": ("claim precision", percent, "at least 90"),
    "contradiction_rate": ("contradiction rate", percent, "at most 3"),
    "untold_rate": ("cannot be told", percent, ""),
    "claims_per_answer": ("claims an answer", number, "at least 4"),
    "recall": ("recall", percent, ""),
    "zone_right": ("zone right", percent, "at least 90"),
    "clock_right": ("clock position of Edge-Loc maps within one hour", percent, "at least 85"),
    "edge_loc_right": ("the same, those without a position counted", percent, ""),
    "clock_for_ring": ("rings given a clock position", percent, "0"),
    "clock_without_place": ("patterns without a place given one", percent, "0"),
}
_SETS = {"real": "labelled maps", "planted": "planted wafers, against their generator's truth"}


@dataclass(frozen=True, slots=True)
class Headline:
    """What a command prints: ``lines`` for people, plain ``values``."""

    lines: list[str]
    values: dict[str, Any]


def headline(report: Mapping[str, Any]) -> Headline:
    """The main figures of ``report``."""
    lines, values = [], {}
    for name in report["maps"]:
        lines += _lines(next(_claim_tables(report, name)))
        values[name] = {
            subject: {key: _value(found[name]["claims"][key]) for key in CLAIMS}
            | {"contradictions_left": found[name]["after_check"]["contradictions_left"]}
            | {"kept": _value(found[name]["after_check"]["kept"])}
            for subject, found in report["subjects"].items()
        }
    if report.get("judge_note"):
        values["judge"] = report["judge_note"]
    elif report["judge"]:
        lines += _lines(judge_summary(report["judge"]))
        values["judge"] = judge_values(report["judge"])
    return Headline(lines, values)


def write_tables(report: Mapping[str, Any], markdown: Path, html: Path) -> None:
    """Write all tables of ``report`` to both files."""
    tables = list(tables_of(report))
    markdown.write_text(_markdown(report, tables), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("words.html.j2").render(
        tables=tables, report=report, about=_about(report)
    )
    html.write_text(page, encoding="utf-8")


def tables_of(report: Mapping[str, Any]) -> Iterator[Table]:
    """All tables of ``report``, in the order in which they are read."""
    for name in report["maps"]:
        yield from _claim_tables(report, name)
    if any("rules" in found.get("real", {}) for found in report["subjects"].values()):
        yield from _rule_tables(report)
    yield from _accuracy_table(report)
    yield from _difference_table(report)
    if report["judge"] is not None:
        yield from judge_tables(report["judge"])


def _claim_tables(report: Mapping[str, Any], name: str) -> Iterator[Table]:
    found = {subject: figures[name] for subject, figures in report["subjects"].items()}
    header = ("", *found, "to reach")
    rows: list[Sequence[str]] = [
        (title, *(span(one["claims"][key], shown) for one in found.values()), reach)
        for key, (title, shown, reach) in CLAIMS.items()
    ]
    after = [one["after_check"] for one in found.values()]
    rows += [
        ("contradictions left after the check", *(str(one["contradictions_left"]) for one in after), "0"),
        ("claims left after the check", *(span(one["kept"], percent) for one in after), "at least 80"),
        ("answers cut or empty", *(f"{one['cut']} / {one['empty']}" for one in found.values()), ""),
        ("tokens an answer", *(f"{one['tokens_per_answer']:.0f}" for one in found.values()), ""),
    ]
    note = f"{report['maps'][name]} wafers; percent, with 95 % intervals over resampled lots."
    yield Table(f"Claims about {_SETS[name]}", note, header, rows)
    for part in ("by_dimension", "by_kind", "by_label"):
        yield _part_table(found, part, _SETS[name])


def _part_table(found: Mapping[str, Any], part: str, where: str) -> Table:
    names = list(dict.fromkeys(key for one in found.values() for key in one["claims"][part]))
    rows = []
    for key in names:
        cells = [_part_cell(one["claims"][part].get(key)) for one in found.values()]
        rows.append((key, *cells))
    note = "Precision, and how many claims are supported / contradicted / cannot be told."
    return Table(f"Claims about {where}, {part.replace('_', ' ')}", note, ("", *found), rows)


def _part_cell(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return "-"
    counts = " / ".join(str(one[verdict]) for verdict in ("supported", "contradicted", "cannot be told"))
    return f"{span(one['precision'], percent)}, {counts}"


def _rule_tables(report: Mapping[str, Any]) -> Iterator[Table]:
    subjects = report["subjects"]
    found = [one["real"]["rules"] for one in subjects.values()]
    rows = [
        (f"{formula}, {key.replace('_', ' ')}", *(span(one[formula][key], number) for one in found))
        for formula, scores in found[0].items()
        for key in scores
    ]
    note = "0 to 1. Phrases that the wafer's rubric asks for and forbids, in descriptions."
    yield Table("Rule score of descriptions", note, ("", *subjects), rows)
    asked = {name: one["questions"] for name, one in subjects.items() if "questions" in one}
    if not asked:
        return
    first = next(iter(asked.values()))
    rows = [
        (f"{formula}, {key.replace('_', ' ')}", *(span(one[formula][key], number) for one in asked.values()))
        for formula in ("published", "optimised", "strict")
        for key in first[formula]
    ]
    rows.append(("yes or no right, percent", *(span(one["consistency"], percent) for one in asked.values())))
    note = f"{first['answers']} questions, each for one dimension, and statements to confirm or correct."
    yield Table("Rule score of answers to questions", note, ("", *asked), rows)


def _accuracy_table(report: Mapping[str, Any]) -> Iterator[Table]:
    found = {
        name: one["classification"]
        for name, one in report["subjects"].items()
        if one.get("classification") is not None
    }
    if found:
        rows = [
            (title, *(span(one[key], percent) for one in found.values()))
            for key, title in (("accuracy", "accuracy"), ("mean_class_recall", "mean recall of the classes"))
        ]
        yield Table("Classes named on the same maps", "Percent.", ("", *found), rows)


def _difference_table(report: Mapping[str, Any]) -> Iterator[Table]:
    rows = []
    for one in report["differences"]:
        title, shown = _titled(one["figure"])
        cell = span(one["difference"], shown, signed=True)
        rows.append((f"{one['of']} less {one['less']}", one["maps"], title, cell))
    if rows:
        note = (
            "On the same wafers; an interval that holds 0 shows no difference. Of shares the difference is "
            "in percentage points."
        )
        yield Table("From one subject to the next", note, ("", "maps", "figure", "difference"), rows)


def _titled(figure: str) -> tuple[str, Callable[[float], str]]:
    """What a figure is called, and how it is shown."""
    if figure in CLAIMS:
        return CLAIMS[figure][:2]
    return figure.replace("_", " "), percent if figure == "accuracy" else number


def _markdown(report: Mapping[str, Any], tables: Sequence[Table]) -> str:
    parts = ["# What is said of wafers", "", *_about(report), ""]
    for table in tables:
        parts += [f"## {table.title}", "", table.note, "", _row(table.header)]
        parts += [_row(["---"] * len(table.header)), *(_row(row) for row in table.rows), ""]
    return "\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _lines(table: Table) -> list[str]:
    """``table`` for a terminal, and an empty line."""
    rows = (table.header, *table.rows)
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.header))]
    return [table.title, *(_aligned(row, widths) for row in rows), ""]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([first, *others]).rstrip()


def _about(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {name}: {one['about']}, digest {_short(one['digest'])}"
        for name, one in report["subjects"].items()
    ]
    machine = report["machine"]
    lines.append(f"- on {machine['gpu'] or machine['cpu']}, {machine['threads']} threads")
    if report.get("judge_note"):
        lines.append(f"- {report['judge_note']}")
    return lines


def _short(digest: str) -> str:
    return "+".join(part[:12] for part in digest.split("+"))


def _value(interval: Mapping[str, float] | None) -> float | None:
    return None if interval is None else round(interval["value"], 4)
