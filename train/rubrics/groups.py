"""How many groups of completions would teach nothing, since all of a group earn the same.

GRPO and GSPO learn from the differences within a group of completions of one prompt; where there are none
the advantage is zero and the step is spent for nothing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.rubrics.formula import Formula, score
from train.rubrics.reading import json_entries
from train.rubrics.reward import RubricReward
from train.rubrics.rows import LintRow
from wafervlm.errors import DatasetError

_ALIKE = 1e-9
_SAMPLE = 500
GROUP = 8
SIMULATED = (
    f"simulated: {GROUP} completions a row, each the row's own reference answer (half of them), that of "
    "a wafer of its class (a quarter) or of any wafer (a quarter), asked the same dimension"
)


@dataclass(frozen=True, slots=True)
class ZeroAdvantage:
    """The ``share`` of ``groups`` whose completions all earn the same, and ``how`` it was found."""

    share: float | None
    groups: int
    how: str


def simulated(rows: Sequence[LintRow], formula: Formula, seed: int = 0) -> ZeroAdvantage:
    """Estimate the share from reference answers, as SIMULATED says; at most 500 rows are drawn.

    It measures how well the rubric tells answers apart. A model's own completions are more alike than these,
    so what training sees lies above it.
    """
    chance = random.Random(seed)
    pool = [row for row in rows if row.applies and row.reference.strip()]
    drawn = chance.sample(pool, _SAMPLE) if len(pool) > _SAMPLE else pool
    by_dimension: dict[str, list[LintRow]] = {}
    by_class: dict[tuple[str, frozenset[str]], list[LintRow]] = {}
    for row in pool:
        by_dimension.setdefault(row.dimension, []).append(row)
        by_class.setdefault((row.dimension, row.labels), []).append(row)
    groups = []
    for row in drawn:
        same, anyone = by_class[row.dimension, row.labels], by_dimension[row.dimension]
        answers = [_draw(row, same, anyone, chance) for _ in range(GROUP)]
        groups.append([score(text, row.must_hit, row.must_avoid, formula).value for text in answers])
    return _share(groups, SIMULATED)


def sampled(rows: Sequence[LintRow], reward: RubricReward, path: Path) -> ZeroAdvantage:
    """The share among completions that a model gave: JSON (lines) of ``{"id", "completions": [text, ...]}``.

    Raises DatasetError for an id that no row has, or a group of fewer than two.
    """
    by_id = {row.id: row for row in rows if row.applies}
    known = {row.id for row in rows}
    groups = []
    for n, entry in enumerate(json_entries(path)):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("completions"), list):
            raise DatasetError(f'entry {n} of {path} must be {{"id": ..., "completions": [...]}}')
        name, texts = str(entry.get("id")), [str(text) for text in entry["completions"]]
        if name not in known:
            raise DatasetError(f"entry {n} of {path} is of row {name!r}, which the rubric set does not have")
        if len(texts) < 2:
            raise DatasetError(f"row {name} of {path} has {len(texts)} completions; a group has two or more")
        if name in by_id:
            row = by_id[name]
            groups.append([reward.one(text, row.must_hit, row.must_avoid) for text in texts])
    return _share(groups, f"sampled completions of {path.name}, format included")


def _draw(row: LintRow, same: Sequence[LintRow], anyone: Sequence[LintRow], chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.5:
        return row.reference
    return chance.choice(same if kind < 0.75 else anyone).reference


def _share(groups: Sequence[Sequence[float | None]], how: str) -> ZeroAdvantage:
    spreads = [_spread(group) for group in groups]
    flat = sum(spread < _ALIKE for spread in spreads)
    return ZeroAdvantage(flat / len(spreads) if spreads else None, len(spreads), how)


def _spread(group: Sequence[float | None]) -> float:
    values = [value for value in group if value is not None]
    return max(values) - min(values) if values else 0.0
