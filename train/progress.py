"""Progress of long work on stderr, with the time left: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress as Bar,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
QUIET_SECONDS = 10.0


class Progress:
    """Shows how far ``total`` steps of ``description`` are. Use as a context manager."""

    def __init__(self, description: str, total: int | None = None, done: int = 0) -> None:
        self._description, self._total = description, total
        self._first, self._done = done, done
        self._bar: Bar | None = None
        self._note = ""
        self._begun = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._description, total=self._total, completed=self._done, note=""
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._say("done")

    def advance(self, n: int = 1, note: str = "") -> None:
        """``n`` more steps are done; ``note`` is shown beside the bar."""
        self._done += n
        if self._bar is not None:
            self._note = note or self._note
            self._bar.update(self._task, advance=n, note=self._note)
        elif time.monotonic() - self._said >= QUIET_SECONDS:
            self._say(note)

    def _say(self, note: str) -> None:
        self._said = time.monotonic()
        spent = self._said - self._begun
        parts = [f"{self._description}: {self._done}" + (f"/{self._total}" if self._total else "")]
        parts.append(f"{spent:.0f} s")
        worked = self._done - self._first
        if self._total and worked and self._done < self._total:
            parts.append(f"{spent / worked * (self._total - self._done):.0f} s left")
        sys.stderr.write(", ".join([*parts, note] if note else parts) + "\n")
        sys.stderr.flush()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while showing progress."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total) as progress:
        for item in items:
            yield item
            progress.advance()
