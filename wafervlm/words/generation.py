"""Generation: one answer, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

import numpy as np

from wafervlm.errors import VerificationError
from wafervlm.render import RgbImage
from wafervlm.words.description import Finish
from wafervlm.words.run import Cancelled, Run
from wafervlm.words.sampling import Chooser
from wafervlm.words.steps import Floats, Steps
from wafervlm.words.text import Prompt

Result = TypeVar("Result")


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
        prompt = self._prompt
        capacity = len(prompt.ids) + self._maximum
        with closing(self._timed("image", lambda: self._steps.read(image, capacity, self._run))) as reader:
            ids = np.array(prompt.ids, np.int64)
            logits = self._timed("prompt", lambda: reader.step(ids, prompt.positions, prompt.rows))
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
                logits = reader.word(token, position)
                self.timing_ms["answer"] += (time.perf_counter_ns() - started) / 1e6

    def _choose(self, logits: Floats) -> int:
        # The largest is finite only where none is NaN and none infinite.
        if not np.isfinite(logits.max()):
            raise VerificationError(
                "the graph gave logits that are no numbers, so no word can be chosen; run: wafervlm verify"
            )
        return self._chooser.choose(logits)

    def _timed(self, part: str, work: Callable[[], Result]) -> Result:
        started = time.perf_counter_ns()
        result = work()
        self.timing_ms[part] += (time.perf_counter_ns() - started) / 1e6
        return result
