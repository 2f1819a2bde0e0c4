"""Runtimes: what executes a bundle's graph. Each is a module here, imported when it is asked for."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.errors import UsageError
from wafervlm.render import RgbImage

RUNTIMES = ("onnx",)


class Runtime(Protocol):
    """A graph ready to run. Safe to call from several threads at once."""

    def run(self, images: RgbImage, deadline: float | None = None) -> NDArray[np.float32]:
        """Label log-probabilities float32 (B, L) of ``images`` uint8 (B, H, W, 3), before temperature.

        ``deadline`` is a time.monotonic() at which the run is stopped. Raises PredictionTimeout and
        ClosedError.
        """

    def close(self) -> None:
        """Free what the runtime holds; a run in another thread ends first."""


def open_runtime(
    name: str,
    bundle: Bundle,
    *,
    device: str = "cpu",
    threads: int | None = None,
    accuracy_level: int | None = None,
) -> Runtime:
    """Make the graph of ``bundle`` ready on ``device``.

    ``threads`` is how many threads one run uses, one per core when None; ``accuracy_level`` overrides
    the manifest's. Raises UsageError for a name that does not exist, ProviderError and
    MissingDependencyError for what this machine lacks.
    """
    if name not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}; known are {', '.join(RUNTIMES)}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError(
            f"threads is {threads!r}; it must be a whole number from 1, or None for one per core"
        )
    from wafervlm.runtimes.onnx import OnnxRuntime

    return OnnxRuntime(bundle, device=device, threads=threads, accuracy_level=accuracy_level)
