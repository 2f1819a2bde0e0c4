"""The reward of reinforcement learning: the rule score of the solution, and whether the tags are right.

A completion is expected to be ``<REASONING>...</REASONING><SOLUTION>...</SOLUTION>``. What earns what:

    completion                                         rule score of           format
    both pairs, in order, once, nothing around them    the solution            1
    one whole <SOLUTION>, anything else out of order   the solution            0.5
    more than one <SOLUTION>, or nested                the last, innermost     0
    no whole <SOLUTION> (no tags, or cut)              nothing: 0, not None    0
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from train.rubrics.formula import STRICT, Formula, score
from wafervlm.errors import ConfigError, DatasetError

_SOLUTION = re.compile(r"<SOLUTION>((?:(?!<SOLUTION>).)*?)</SOLUTION>", re.DOTALL | re.IGNORECASE)
_OPENING = re.compile(r"<SOLUTION>", re.IGNORECASE)
_TAG = r"(?!</?(?:REASONING|SOLUTION)>)."
_WELL_FORMED = re.compile(
    rf"\s*<REASONING>(?:{_TAG})*\S(?:{_TAG})*</REASONING>\s*<SOLUTION>(?:{_TAG})*\S(?:{_TAG})*</SOLUTION>\s*",
    re.DOTALL | re.IGNORECASE,
)
_SHOWN = 60


def solution(text: str) -> str | None:
    """What the last whole ``<SOLUTION>`` of ``text`` holds; None where there is none."""
    found = _SOLUTION.findall(text)
    return found[-1].strip() if found else None


def format_score(text: str) -> float:
    """1, 0.5 or 0, as the table above says."""
    if _WELL_FORMED.fullmatch(text):
        return 1.0
    once = len(_OPENING.findall(text)) == 1 and solution(text) is not None
    return 0.5 if once else 0.0


class RubricReward:
    """A reward function that TRL's GRPOTrainer calls: ``(completions, **columns) -> list[float | None]``.

    The reward is ``(1 - format_weight) * rule score + format_weight * format``, 0..1. It reads the columns
    ``must_hit`` and ``must_avoid`` (lists of phrases) and, for messages, ``id``. A row without a must-hit
    phrase does not apply: its reward is None, which the trainer leaves out, and ``not_applicable`` counts it.
    Raises DatasetError naming the row where a list is none of phrases or a reward comes out as no number, and
    ConfigError for a ``format_weight`` outside 0..1.
    """

    __name__ = "rubric_reward"

    def __init__(self, formula: Formula = STRICT, format_weight: float = 0.1) -> None:
        if not 0 <= format_weight <= 1:
            raise ConfigError(f"the weight of the format is {format_weight}; it must be 0 to 1")
        self.formula, self.format_weight = formula, format_weight
        self.not_applicable = 0

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        hits = _column(columns, "must_hit", len(texts))
        avoids = _column(columns, "must_avoid", len(texts))
        rewards = []
        for i, text in enumerate(texts):
            row = _row_name(columns, i)
            value = self.one(text, _phrases(hits[i], "must_hit", row), _phrases(avoids[i], "must_avoid", row))
            if value is not None and not math.isfinite(value):
                raise DatasetError(f"the reward of {row} is {value}, which is no number to learn from")
            self.not_applicable += value is None
            rewards.append(value)
        return rewards

    def one(self, text: str, must_hit: Sequence[str], must_avoid: Sequence[str]) -> float | None:
        """The reward of one completion, None where the rubric does not apply."""
        answer = solution(text)
        ruled = score(answer or "", must_hit, must_avoid, self.formula).value
        if ruled is None:
            return None
        # Saying nothing avoids everything; that must not pay for leaving the tags out.
        ruled = 0.0 if not answer else ruled
        return (1 - self.format_weight) * ruled + self.format_weight * format_score(text)


def format_reward(completions: Sequence[Any], **_columns: Any) -> list[float]:
    """The format alone, as a reward function of its own for TRL."""
    return [format_score(completion_text(completion)) for completion in completions]


def completion_text(completion: Any) -> str:
    """The text of a completion: text, or a chat whose last turn's content is text or parts of it."""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion and isinstance(completion[-1], dict):
        content = completion[-1].get("content", "")
        if isinstance(content, str):
            return content
        if isinstance(content, Sequence):
            return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    raise DatasetError(f"a completion is neither text nor a chat: {str(completion)[:_SHOWN]!r}")


def _column(columns: dict[str, Any], name: str, count: int) -> Sequence[Any]:
    found = columns.get(name)
    if found is None or isinstance(found, str) or len(found) != count:
        given = ", ".join(sorted(columns)) or "none"
        raise DatasetError(
            f"the reward needs a column {name} with one list of phrases for each of the {count} completions; "
            f"the columns given are {given}"
        )
    return found  # type: ignore[no-any-return]


def _phrases(value: Any, name: str, row: str) -> Sequence[str]:
    if isinstance(value, list | tuple) and all(isinstance(phrase, str) for phrase in value):
        return value
    raise DatasetError(f"{name} of {row} must be a list of phrases, not {str(value)[:_SHOWN]!r}")


def _row_name(columns: dict[str, Any], i: int) -> str:
    ids = columns.get("id")
    return f"row {ids[i]}" if ids is not None else f"completion {i} of the batch (its row has no id)"
