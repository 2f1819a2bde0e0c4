"""Generation: one answer, token by token, and how it is told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from wafervlm.errors import PredictionTimeout, UsageError, VerificationError
from wafervlm.render import RgbImage
from wafervlm.runtimes.onnx import run_error
from wafervlm.words.description import Finish
from wafervlm.words.sampling import Chooser
from wafervlm.words.steps import Floats, Steps
from wafervlm.words.text import Prompt

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
    """Calls the graphs of one generation; ends one that is under way at the deadline or on ``cancel``.

    A context: the deadline is watched inside it.
    """

    def __init__(self, options: Any, limits: Limits) -> None:
        self._options, self._limits = options, limits
        self._cancelled = self._late = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Run:
        if self._limits.deadline is not None:
            # One for the whole answer: a thread for each token would take as long as the token.
            self._timer = threading.Timer(self._limits.deadline - time.monotonic(), self._expire)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def __call__(self, session: Any, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        """Run ``session``. Raises PredictionTimeout, Cancelled, and what a graph that fails raises."""
        if self._limits.cancelled is not None and self._limits.cancelled():
            self.cancel()
        self._check()
        try:
            found: list[Any] = session.run(outputs, inputs, self._options)
        except Exception as error:
            self._check()
            raise run_error(error, "the text; ask a shorter question, or close other programs") from error
        return found

    def cancel(self) -> None:
        """End the generation, from any thread."""
        self._cancelled = True
        self._options.terminate = True

    def _expire(self) -> None:
        self._late = True
        self._options.terminate = True

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled
        if self._late:
            raise PredictionTimeout(
                "the answer was stopped at its timeout; allow it more time, or fewer tokens"
            )


class Generation:
    """One answer: ``said`` holds its tokens so far, ``finish`` why it ended, ``timing_ms`` what was spent."""

    def __init__(
        self, steps: Steps, run: Run, prompt: Prompt, chooser: Chooser, stop: tuple[int, ...], maximum: int
    ) -> None:
        self.said: list[int] = []
        self.finish: Finish = "cancelled"
        self.timing_ms = {"image": 0.0, "prompt": 0.0, "answer": 0.0}
        self._steps, self._run, self._chooser = steps, run, chooser
        self._prompt, self._stop, self._maximum = prompt, stop, maximum

    def tokens(self, image: RgbImage) -> Iterator[int]:
        """The tokens of the answer about ``image`` (1, H, W, 3) uint8, without the one that ends it."""
        try:
            with self._run:
                yield from self._tokens(image)
        except Cancelled:
            self.finish = "cancelled"

    def _tokens(self, image: RgbImage) -> Iterator[int]:
        features = self._timed("image", lambda: self._steps.features(image, self._run))
        cache = self._steps.cache(len(self._prompt.ids) + self._maximum)
        prompt = self._prompt
        ids = np.array(prompt.ids, np.int64)
        logits = self._timed(
            "prompt",
            lambda: self._steps.step(cache, ids, prompt.positions, prompt.rows, features, self._run),
        )
        while True:
            token = self._choose(logits)
            self.said.append(token)
            if token in self._stop:
                self.finish = "stop"
                return
            yield token
            if len(self.said) >= self._maximum:
                self.finish = "length"
                return
            position = prompt.next_position + len(self.said) - 1
            started = time.perf_counter_ns()
            logits = self._steps.word(cache, token, position, features, self._run)
            self.timing_ms["answer"] += (time.perf_counter_ns() - started) / 1e6

    def _choose(self, logits: Floats) -> int:
        # The largest is finite only where none is NaN and none infinite.
        if not np.isfinite(logits.max()):
            raise VerificationError(
                "the graph gave logits that are no numbers, so no word can be chosen; run: wafervlm verify"
            )
        return self._chooser.choose(logits)

    def _timed(self, part: str, work: Callable[[], Floats]) -> Floats:
        started = time.perf_counter_ns()
        result = work()
        self.timing_ms[part] += (time.perf_counter_ns() - started) / 1e6
        return result
