"""The GPU for one thread at a time: its stream, and the engines and contexts that live on it."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator

from wafervlm.errors import ClosedError, DeviceLost, PredictionTimeout, SetupError
from wafervlm.runtimes.cuda import Stream
from wafervlm.runtimes.tensorrt_api import ICudaEngine, IExecutionContext, Runtime


class Held:
    """What must be given back in this order: a context reads its engine, and both the device memory."""

    def __init__(self) -> None:
        # The stream first: it makes the device current, which TensorRT expects.
        self.stream = Stream()
        self.loader: Runtime | None = None
        self.engines: list[ICudaEngine] = []
        self.contexts: list[IExecutionContext] = []
        self.graphs: list[int] = []

    def release(self) -> None:
        with contextlib.suppress(SetupError):
            self.stream.enter()
            self.stream.wait()
            for graph in self.graphs:
                self.stream.forget(graph)
        self.graphs.clear()
        self.contexts.clear()
        self.engines.clear()
        self.loader = None
        self.stream.close()


class Device:
    """An execution context may be used by one thread at a time, so each takes its ``turn``.

    What is held is given back by ``close``, and where the last reference is dropped without it.
    """

    def __init__(self) -> None:
        self.held = Held()
        self._lock = threading.Lock()
        self._lost: DeviceLost | None = None
        self._release = weakref.finalize(self, self.held.release)

    @contextlib.contextmanager
    def turn(self, deadline: float | None = None) -> Iterator[Stream]:
        """The stream, for one thread at a time. Raises PredictionTimeout, ClosedError, and DeviceLost where
        it was lost before."""
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if left == 0 or not self._lock.acquire(timeout=left):
            raise PredictionTimeout(
                "the time allowed was over before the engine could run; allow it more time"
            )
        try:
            if self._lost is not None:
                raise DeviceLost(str(self._lost))
            if not self._release.alive:
                raise ClosedError("this model was closed; load it again")
            self.held.stream.enter()
            yield self.held.stream
        except DeviceLost as error:
            self._lost = error
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give all of it back; a turn under way ends first. Closing twice does nothing."""
        with self._lock:
            self._release()
