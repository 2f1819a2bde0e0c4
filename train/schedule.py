"""How far a training is, by steps or by the clock: learning rate and evaluations follow from it."""

from __future__ import annotations

import math
import time


class Schedule:
    """Progress from 0 to 1 over ``steps`` optimizer steps, or over ``limit_seconds`` where that comes first.

    Learning rate: linear from 0 over the first ``warmup`` of the training, then half a cosine down to 0.
    ``evaluations`` are spread evenly, the last at the end. ``elapsed`` are the seconds of training before
    this process; the clock runs from ``start`` on. 0 ``limit_seconds`` is no limit.
    """

    def __init__(
        self, steps: int, warmup: float, evaluations: int, limit_seconds: float = 0.0, elapsed: float = 0.0
    ) -> None:
        self.steps, self._warmup, self._evaluations = steps, warmup, min(evaluations, steps)
        self.limit_seconds, self._before = limit_seconds, elapsed
        self._begun: float | None = None
        self.reserve = 0.0
        """Seconds to keep for the last evaluation."""

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, those of interrupted runs included."""
        return self._before + (time.monotonic() - self._begun if self._begun is not None else 0.0)

    def start(self) -> None:
        """Let the clock run from now on."""
        self._begun = time.monotonic()

    def progress(self, step: int) -> float:
        """Share of the training that is done after ``step`` steps, 0 to 1."""
        clock = self.elapsed / max(self.limit_seconds - self.reserve, 1e-9) if self.limit_seconds else 0.0
        return min(1.0, max(step / self.steps, clock))

    def rate(self, step: int) -> float:
        """Factor of the learning rate for the step after ``step`` steps, 0 to 1."""
        done = self.progress(step)
        if done < self._warmup:
            # The first step must not be wasted on a rate of zero.
            return min(1.0, (done + 1 / self.steps) / self._warmup)
        return 0.5 * (1 + math.cos(math.pi * (done - self._warmup) / (1 - self._warmup)))

    def evaluations_due(self, step: int) -> int:
        """How many evaluations should have been made after ``step`` steps."""
        # Ten times a tenth may fall short of one by a rounding error.
        return math.floor(self.progress(step) * self._evaluations + 1e-9)
