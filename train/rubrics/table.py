"""The linter's report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from train.rubrics.attacks import Earned
from train.rubrics.findings import ERRORS, WARNINGS
from train.rubrics.lint import LintReport

_COLUMNS = ("rows", "reference", "constant", "by question", "empty", "wrong class", "stuffed")
_SHOWN_EACH = 5
_SHOWN = 72


def render(report: LintReport) -> str:
    """Tables of what answers earn and of the findings, then the first few findings of each kind."""
    lines = [_rows(report), "", *_earned(report), "", _zero_advantage(report)]
    if report.findings:
        lines += ["", *_findings(report)]
    return "\n".join(lines)


def _rows(report: LintReport) -> str:
    parts = [f"{report.rows:,} RL rows", f"{report.scored:,} scored"]
    parts += [f"{report.not_applicable:,} not applicable"] if report.not_applicable else []
    parts += [f"{report.unusable:,} not usable"] if report.unusable else []
    parts += [f"{report.vqa_rows:,} VQA rows"] if report.vqa_rows else []
    return ", ".join(parts)


def _earned(report: LintReport) -> Iterator[str]:
    width = max((len(name) for name in report.dimensions), default=0)
    width = max(width, len("mean score"))
    yield f"{'mean score':<{width}}" + "".join(f"{column:>13}" for column in _COLUMNS)
    for name, found in report.dimensions.items():
        yield f"{name:<{width}}{found.rows:>13,}" + "".join(f"{_figure(v):>13}" for v in _values(found))
    for name, found in report.dimensions.items():
        yield from _remarks(name, found)


def _values(found: Earned) -> tuple[float | None, ...]:
    attacks = (found.constant, found.by_question, found.empty, found.wrong_class, found.stuffed)
    return (found.reference.value, *attacks)


def _remarks(name: str, found: Earned) -> Iterator[str]:
    if found.constant is not None:
        yield f"best constant in {name}: {_short(found.best_constant)!r}"
    elif found.reference.counted:
        yield f"{name}: too few rows, or rows of one class only, to judge constant and wrong-class answers"


def _zero_advantage(report: LintReport) -> str:
    found = report.zero_advantage
    share = "-" if found.share is None else f"{found.share:.1%}"
    return f"zero-advantage groups: {share} of {found.groups:,} ({found.how})"


def _findings(report: LintReport) -> Iterator[str]:
    severity = {**dict.fromkeys(ERRORS, "error"), **dict.fromkeys(WARNINGS, "warning")}
    width = max(len(kind) for kind in report.counts)
    ordered = sorted(report.counts.items(), key=lambda item: (severity[item[0]] != "error", -item[1]))
    for kind, count in ordered:
        yield f"{severity[kind]:<8}{kind:<{width}}{count:>8,}  {(ERRORS | WARNINGS)[kind]}"
    for kind, count in ordered:
        yield ""
        alike = [finding for finding in report.findings if finding.kind == kind]
        for finding in alike[:_SHOWN_EACH]:
            phrase = f" {_short(finding.phrase)!r}" if finding.phrase else ""
            yield f"{kind}: row {finding.row}{phrase}: {finding.why}"
        if count > _SHOWN_EACH:
            yield f"{kind}: {count - _SHOWN_EACH:,} more; --json lists all"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
