"""The system prompt of the reinforcement learning and the tags that it asks for."""

from __future__ import annotations

REASONING, SOLUTION = "REASONING", "SOLUTION"
SYSTEM_PROMPT = (
    "You read semiconductor wafer maps. First write what you see between <REASONING> and </REASONING>, then "
    "the answer alone between <SOLUTION> and </SOLUTION>. Name root causes as candidates only."
)


def tagged(reasoning: str, solution: str) -> str:
    """``reasoning`` and ``solution`` in the form that SYSTEM_PROMPT asks for."""
    return f"<{REASONING}>{reasoning}</{REASONING}><{SOLUTION}>{solution}</{SOLUTION}>"
