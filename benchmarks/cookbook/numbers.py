"""How figures are written in a report, and which command each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.assessment.texts import Table, percent, span
from benchmarks.cookbook.artefacts import KINDS, Artefact
from benchmarks.cookbook.blocks import Command, Missing, Sheet
from benchmarks.cookbook.lines import Places, command_of


class Sources:
    """The commands behind the figures, numbered in the order in which they are first needed."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._numbers: dict[str, int] = {}
        self.commands: list[Command] = []

    def of(self, made: Artefact | None) -> int | None:
        """The number of the command that made ``made``, None where no command makes it."""
        line = None if made is None else command_of(made, self._places)
        if made is None or line is None:
            return None
        if line not in self._numbers:
            self._numbers[line] = len(self.commands) + 1
            self.commands.append(Command(self._numbers[line], made.stage, line))
        return self._numbers[line]

    def line(self, line: str, stage: str) -> int:
        """The number of a command that left no artefact."""
        if line not in self._numbers:
            self._numbers[line] = len(self.commands) + 1
            self.commands.append(Command(self._numbers[line], stage, line))
        return self._numbers[line]


def missing(kind: str, what: str) -> Missing:
    """That ``what`` is not reported, since the artefact of ``kind`` is not there."""
    about = KINDS[kind]
    return Missing(
        f"{what} not here: nothing was found that {about.made_by} writes. "
        f"--{kind.replace('_', '-')} names it."
    )


def count(value: float) -> str:
    """A whole number, with commas."""
    return f"{int(value):,}"


def shared(figures: Mapping[str, Any], name: str) -> str:
    """A share in percent with its interval, whose limits stand beside it under its own name."""
    limits = {"value": figures[name], "low": figures[f"{name}_low"], "high": figures[f"{name}_high"]}
    return span(limits, percent)


def points(after: float, before: float) -> str:
    """By how many points one share is above another."""
    return f"{100 * (after - before):+.1f}"


def plain(value: Any) -> str:
    """A setting or a figure of any kind."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return count(value) if isinstance(value, int) else str(value)


def worded(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ").replace(".", " ")


def listing(title: str, note: str, values: Mapping[str, Any], source: int | None) -> Sheet:
    """Plain values as a table of two columns."""
    rows = [
        (worded(key), plain(value)) for key, value in values.items() if not isinstance(value, (dict, list))
    ]
    return Sheet(Table(title, note, ("", ""), rows), source)
