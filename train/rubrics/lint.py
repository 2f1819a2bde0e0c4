"""The linter: whether a set of rubrics is a sound reward, and what is wrong with it where it is not.

Sound means: reference answers earn much, answers that look at no wafer earn little, and no phrase is broken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from train.rubrics.attacks import ATTACKS, Earned, earned
from train.rubrics.findings import Finding
from train.rubrics.formula import STRICT, Formula
from train.rubrics.groups import ZeroAdvantage, sampled, simulated
from train.rubrics.phrases import row_findings
from train.rubrics.reading import RowSet, read_set
from train.rubrics.reward import RubricReward
from train.rubrics.rows import LintRow
from wafervlm.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """Between what the mean rule scores must lie, 0..1, in each dimension."""

    reference: float = 0.9
    """What reference answers must earn at least."""
    attack: float = 0.6
    """What an answer that looks at no wafer may earn at most."""

    def __post_init__(self) -> None:
        for name in ("reference", "attack"):
            # NaN is in no range, and would refuse nothing.
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"the limit {name} is {getattr(self, name):g}; it must be 0 to 1")


@dataclass(frozen=True, slots=True)
class LintReport:
    """What the linter found. ``failures`` says in a sentence each why the set is refused."""

    rows: int
    vqa_rows: int
    scored: int
    not_applicable: int
    unusable: int
    dimensions: Mapping[str, Earned]
    zero_advantage: ZeroAdvantage
    findings: tuple[Finding, ...]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the set may be used as a reward."""
        return not self.failures

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, the most frequent first."""
        return dict(Counter(finding.kind for finding in self.findings).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "rows": self.rows,
            "vqa_rows": self.vqa_rows,
            "scored": self.scored,
            "not_applicable": self.not_applicable,
            "unusable": self.unusable,
            "dimensions": {name: asdict(figures) for name, figures in self.dimensions.items()},
            "zero_advantage": asdict(self.zero_advantage),
            "counts": self.counts,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def lint(
    path: Path,
    formula: Formula = STRICT,
    limits: Limits | None = None,
    *,
    completions: Path | None = None,
    seed: int = 0,
) -> LintReport:
    """Lint the rows at ``path`` (a folder or a JSON file) as a reward with ``formula``.

    ``completions``: what a model answered, from which the share of zero-advantage groups is then taken.
    Raises DatasetError where there is nothing to lint.
    """
    found = read_set(path)
    groups = (
        simulated(found.rows, formula, seed)
        if completions is None
        else sampled(found.rows, RubricReward(formula), completions)
    )
    return judge(found, formula, limits or Limits(), groups, seed)


def judge(found: RowSet, formula: Formula, limits: Limits, groups: ZeroAdvantage, seed: int) -> LintReport:
    """The report on rows that were read."""
    figures = earned(found.rows, formula, seed)
    findings = list(found.findings)
    findings += [f for row in found.rows for f in row_findings(row, formula, limits.reference)]
    findings += _empty_dimensions(found.rows, figures)
    return LintReport(
        rows=len(found.rows),
        vqa_rows=found.vqa_rows,
        scored=sum(row.applies for row in found.rows),
        not_applicable=sum(row.sound and not row.must_hit for row in found.rows),
        unusable=sum(not row.sound for row in found.rows),
        dimensions=figures,
        zero_advantage=groups,
        findings=tuple(findings),
        failures=(*_score_failures(figures, limits), *_finding_failures(findings)),
    )


def _empty_dimensions(rows: tuple[LintRow, ...], figures: Mapping[str, Earned]) -> Iterator[Finding]:
    for name, found in figures.items():
        ids = [row.id for row in rows if row.dimension == name and row.sound]
        if not any(row.applies for row in rows if row.dimension == name):
            why = f"none of the {found.rows} rows of {name} has a must-hit phrase"
            yield Finding("empty-dimension", ids[0], "", why)


def _score_failures(figures: Mapping[str, Earned], limits: Limits) -> Iterator[str]:
    if not any(found.reference.counted for found in figures.values()):
        yield "no row can be scored: none has both a must-hit phrase and a reference answer"
    for name, found in figures.items():
        value = found.reference.value
        if value is not None and value < limits.reference:
            yield f"reference answers earn {value:.2f} in {name}; they must earn {limits.reference:g} or more"
        for attack in ATTACKS:
            value = getattr(found, attack)
            if value is not None and value > limits.attack:
                told = attack.replace("_", "-")
                yield f"{told} answers earn {value:.2f} in {name}; at most {limits.attack:g} is sound"


def _finding_failures(findings: list[Finding]) -> Iterator[str]:
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        rows = len({finding.row for finding in errors})
        yield f"defects found: {len(errors):,}, rows with one: {rows:,}"
