"""A runtime that is opened at its first run: a model that is asked for words alone needs none."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import ClosedError
from wafervlm.render import RgbImage
from wafervlm.runtimes import Runtime


class DeferredRuntime:
    """What ``opener`` opens, a runtime that takes up to ``max_batch`` images, None for any number; see
    ``wafervlm.runtimes.Runtime``. Until it is open each run raises what opening it raises, too."""

    def __init__(self, opener: Callable[[], Runtime], max_batch: int | None = None) -> None:
        self.max_batch = max_batch
        self._open = opener
        self._runtime: Runtime | None = None
        self._closed = False
        self._lock = threading.Lock()

    def run(self, images: RgbImage, deadline: float | None = None) -> NDArray[np.float32]:
        return self._opened().run(images, deadline)

    def close(self) -> None:
        with self._lock:
            self._closed, runtime, self._runtime = True, self._runtime, None
        if runtime is not None:
            runtime.close()

    def _opened(self) -> Runtime:
        with self._lock:
            if self._closed:
                raise ClosedError("this model was closed; load it again")
            if self._runtime is None:
                self._runtime = self._open()
            return self._runtime
