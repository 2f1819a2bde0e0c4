"""The system prompt of the reinforcement learning and the tags that it asks for."""

from __future__ import annotations

import re

REASONING, SOLUTION = "REASONING", "SOLUTION"
SYSTEM_PROMPT = (
    "You read semiconductor wafer maps. First write what you see between <REASONING> and </REASONING>, then "
    "the answer alone between <SOLUTION> and </SOLUTION>. Name root causes as candidates only."
)
_TAGGED = re.compile(
    rf"\s*<{REASONING}>(.*?)</{REASONING}>\s*<{SOLUTION}>(.*?)</{SOLUTION}>\s*", re.DOTALL | re.IGNORECASE
)


def tagged(reasoning: str, solution: str) -> str:
    """``reasoning`` and ``solution`` in the form that SYSTEM_PROMPT asks for."""
    return f"<{REASONING}>{reasoning}</{REASONING}><{SOLUTION}>{solution}</{SOLUTION}>"


def solution_of(text: str) -> str | None:
    """The solution in ``text``, None where it is not exactly of the form that SYSTEM_PROMPT asks for."""
    found = _TAGGED.fullmatch(text)
    return None if found is None else found.group(2).strip()
