"""Run: one generation that is under way, and how it is told to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from wafervlm.errors import PredictionTimeout, UsageError

MAX_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end at the latest: after ``max_tokens``; at ``deadline``, a time.monotonic(), with
    PredictionTimeout; once ``cancelled``, asked before each token, says yes. Raises UsageError."""

    max_tokens: int = MAX_TOKENS
    deadline: float | None = None
    cancelled: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or isinstance(self.max_tokens, bool) or self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens!r}; it must be a whole number from 1")
        if self.cancelled is not None and not callable(self.cancelled):
            raise UsageError(f"cancelled is {self.cancelled!r}; it must be a function that says yes or no")


class Cancelled(Exception):
    """The generation was told to end; never leaves this package."""


class Run:
    """Says of one generation whether it may go on; ends a graph that is under way at the deadline or on
    ``cancel``, where that can be ended.

    A context: the deadline is watched inside it.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._cancelled = self._late = False
        self._timer: threading.Timer | None = None
        self._ends: list[Callable[[], None]] = []

    def __enter__(self) -> Run:
        if self.deadline is not None:
            # One for the whole answer: a thread for each token would take as long as the token.
            self._timer = threading.Timer(self.deadline - time.monotonic(), self._expire)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def deadline(self) -> float | None:
        """When it ends at the latest, a time.monotonic()."""
        return self._limits.deadline

    def when_ended(self, end: Callable[[], None]) -> None:
        """Have ``end`` called, from any thread, where this is cancelled or late."""
        self._ends.append(end)

    def begin(self) -> None:
        """To be called before each graph. Raises PredictionTimeout and Cancelled."""
        if self._limits.cancelled is not None and self._limits.cancelled():
            self.cancel()
        self.check()

    def check(self) -> None:
        """To be called while a graph runs, and when it failed. Raises PredictionTimeout and Cancelled."""
        if self._cancelled:
            raise Cancelled
        if self._late:
            raise PredictionTimeout(
                "the answer was stopped at its timeout; allow it more time, or fewer tokens"
            )

    def cancel(self) -> None:
        """End the generation, from any thread."""
        self._cancelled = True
        self._end()

    def _expire(self) -> None:
        self._late = True
        self._end()

    def _end(self) -> None:
        for end in self._ends:
            end()
