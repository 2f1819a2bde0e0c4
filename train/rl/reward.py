"""What an answer earns, and what a round of answers teaches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train.rl.claims import claims_score
from train.rl.rows import PolicyRow
from train.rl.settings import RewardSettings
from train.rubrics.formula import FORMULAS
from train.rubrics.reward import RubricReward, completion_text, format_score, solution
from wafervlm.errors import DatasetError

# Of a prompt, the text of an answer and whether it came to its end: the parts of the reward, None where one
# does not apply. Whether one applies must depend on the prompt alone, or answers of a group are not alike.
Judge = Callable[[PolicyRow, str, bool], Mapping[str, float | None]]
PARTS = ("rubric", "claims", "format")
# Rewards are multiples of this, so that the mean of equal ones is exactly that one and their advantages 0.
# Of what rounding would leave Adam makes steps as large as any.
GRAIN = 2.0**-16


class RuleJudge:
    """Judges by the rubric, by the dies and by the form, each 0..1, as ``settings`` say."""

    def __init__(self, settings: RewardSettings, tags: bool) -> None:
        self._settings, self._tags = settings, tags
        self._rubric = RubricReward(FORMULAS[settings.formula], format_weight=0.0)

    def __call__(self, row: PolicyRow, text: str, ended: bool) -> dict[str, float | None]:
        """The parts of what ``text`` earns as an answer to ``row``; ``ended`` is False where it was cut."""
        tagged = text if self._tags else f"<SOLUTION>{text}</SOLUTION>"
        found = solution(tagged) or ""
        form = format_score(text) if self._tags else float(bool(found))
        return {
            "rubric": self._rubric.one(tagged, row.row.must_hit, row.row.must_avoid),
            "claims": self._claims(row, found, text),
            "format": form if ended else 0.0,
        }

    def _claims(self, row: PolicyRow, answer: str, text: str) -> float | None:
        if not self._settings.claims or not row.topics:
            return None
        return claims_score(answer, text, row.geometry, row.topics, self._settings.claims_floor)


class Reward:
    """A reward function that TRL's GRPOTrainer calls, over ``rows``; the column ``row`` says which.

    The reward is the mean of the parts that apply, by ``weights``, a multiple of GRAIN. To ``log_metric`` go
    the mean of each part and zero_variance, the share of the groups of ``completions`` answers whose
    rewards are all alike. Raises DatasetError naming the row where a part is no number, or none applies.
    """

    __name__ = "reward"

    def __init__(
        self,
        rows: Sequence[PolicyRow],
        judge: Judge,
        weights: Mapping[str, float],
        completions: int,
        ends: Sequence[int],
    ) -> None:
        self._rows, self._judge, self._weights = rows, judge, weights
        self._completions, self._ends = completions, frozenset(ends)

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        row: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        texts = [completion_text(completion) for completion in completions]
        parts = [
            self.parts(self._rows[index], text, ended=bool(ids) and ids[-1] in self._ends)
            for index, text, ids in zip(row, texts, completion_ids, strict=True)
        ]
        rewards = [round(weighed(part, self._weights) / GRAIN) * GRAIN for part in parts]
        if log_metric is not None:
            for name in PARTS:
                found = [value for part in parts if (value := part.get(name)) is not None]
                if found:
                    log_metric(name, math.fsum(found) / len(found))
            log_metric("zero_variance", zero_variance(rewards, self._completions))
        return rewards

    def parts(self, row: PolicyRow, text: str, *, ended: bool) -> dict[str, float | None]:
        """The parts of what ``text`` earns. Raises DatasetError as the class says."""
        found = dict(self._judge(row, text, ended))
        for name, value in found.items():
            if value is not None and not math.isfinite(value):
                raise DatasetError(
                    f"the reward for {name} of row {row.id} is {value}, which is no number to learn from; "
                    f"the answer was {text[:60]!r}"
                )
        if not any(value is not None and self._weights.get(name) for name, value in found.items()):
            raise DatasetError(f"no part of the reward applies to row {row.id}; leave the row out")
        return found


def weighed(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """The mean by ``weights`` of the ``parts`` that are not None."""
    applied = {name: value for name, value in parts.items() if value is not None}
    total = math.fsum(weights.get(name, 0.0) for name in applied)
    return math.fsum(weights.get(name, 0.0) * value for name, value in applied.items()) / total


def zero_variance(rewards: Sequence[float], group: int) -> float:
    """The share of the groups of ``group`` rewards in a row that are all alike, and so teach nothing."""
    groups = [rewards[first : first + group] for first in range(0, len(rewards), group)]
    return sum(max(each) - min(each) < GRAIN for each in groups) / len(groups)
