"""What a rule of the grammar is, and what it reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wafervlm.claims.claim import Value
from wafervlm.claims.clauses import Text

Match = re.Match[str]


@dataclass(frozen=True, slots=True)
class Found:
    """What a rule read: ``negated`` is None where the words around decide."""

    kind: str
    value: Value
    start: int
    end: int
    negated: bool | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """``pattern`` is looked for where one of the ``signs`` occurs; ``read`` makes claims of a match. What a
    rule that ``takes`` has read is hidden from the rules after it."""

    signs: tuple[str, ...]
    pattern: re.Pattern[str]
    read: Callable[[Match, Text], Iterator[Found]]
    takes: bool = True


def found(m: Match, kind: str, value: Value, negated: bool | None = None) -> Found:
    """The claim that the whole of a match makes."""
    start, end = m.span()
    while end > start and m.string[end - 1] == " ":
        end -= 1
    return Found(kind, value, start, end, negated)


def about(text: Text, start: int, value: Value, but: tuple[str, ...] = ()) -> Value:
    """``value``, with the structure that the phrase at ``start`` is about, where it names one."""
    subject = text.subject(start)
    if subject is None or subject in but:
        return value
    return (subject, *value) if isinstance(value, tuple) else (subject, value)
