"""A table, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """One table: a ``title``, a ``note`` on what it shows, a ``header``, and ``rows`` of as many cells."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f}"


def number(value: float) -> str:
    """A figure that is no share."""
    return f"{value:.3f}"


def span(interval: Mapping[str, Any] | None, shown: Callable[[float], str], *, signed: bool = False) -> str:
    """A figure with its interval, "-" where there is none."""
    if interval is None:
        return "-"
    value = f"{'+' if signed and interval['value'] > 0 else ''}{shown(interval['value'])}"
    return f"{value} [{shown(interval['low'])}, {shown(interval['high'])}]"
