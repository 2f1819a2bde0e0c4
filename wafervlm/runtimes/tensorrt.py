"""TensorRT: runs an engine on the GPU, by the package and version that built it.

A graph whose shape does not change is captured and launched as one: by tensorrt_rtx itself, for tensorrt
here.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine, verify_command
from wafervlm.errors import (
    DeviceLost,
    PredictionTimeout,
    ProviderError,
    ResourceError,
    SetupError,
    UsageError,
)
from wafervlm.render import RgbImage
from wafervlm.runtimes.cuda import Stream, byte_size
from wafervlm.runtimes.tensorrt_api import IExecutionContext
from wafervlm.runtimes.tensorrt_build import is_memory
from wafervlm.runtimes.tensorrt_cache import KernelCache
from wafervlm.runtimes.tensorrt_device import Device, Held
from wafervlm.runtimes.tensorrt_loading import check_contract, deserialise, find_place, make_contexts
from wafervlm.runtimes.tensorrt_package import import_library

log = logging.getLogger(__name__)


class TensorRTRuntime:
    """One engine on the GPU; see ``wafervlm.runtimes.Runtime``.

    ``runtime_cache`` is a folder in which tensorrt_rtx keeps the kernels that it compiled for this GPU, so
    that the next start is quick; what lies there is executed, so it must be as well guarded as the engine.
    """

    def __init__(self, bundle: Bundle, engine: Engine, *, runtime_cache: Path | None = None) -> None:
        self.place = find_place(engine, bundle)
        self.max_batch: int | None = engine.manifest.max_batch
        self._library = import_library(engine.manifest.builder)
        self._verify = verify_command(engine.path, bundle.path)
        self._input, self._output = bundle.manifest.graph.input, bundle.manifest.graph.output
        task = bundle.manifest.task
        self._labels = len(task.labels)
        self._sides = (task.render.height, task.render.width, 3)
        self._cache = KernelCache(self._library, runtime_cache, engine.manifest.file.sha256, self.place)
        # tensorrt_rtx captures by itself.
        self._captured = _Captured(wanted=self._library.rtx is None)
        started = time.perf_counter()
        self._device = Device()
        try:
            self._open(self._device.held, bundle, engine)
        except BaseException:
            self._device.close()
            raise
        log.debug("opened %s on %s in %.1f s", engine.path, self.place.gpu, time.perf_counter() - started)

    def run(self, images: RgbImage, deadline: float | None = None) -> NDArray[np.float32]:
        if len(images) > (self.max_batch or 0):
            raise UsageError(
                f"{len(images)} images at once are more than the engine takes, {self.max_batch}; pass fewer, "
                "or build it again with --max-batch"
            )
        with self._device.turn(deadline) as stream:
            scores = np.empty((len(images), self._labels), np.float32)
            stream.upload(self._input, images)
            self._enqueue(stream, len(images))
            # A pass cannot be stopped: the next one waits for it.
            if deadline is not None and not stream.wait_until(deadline):
                raise PredictionTimeout("the prediction was stopped at its timeout; allow it more time")
            stream.download(self._output, scores)
            self._cache.keep(len(images))
        return scores

    def close(self) -> None:
        self._device.close()

    def _open(self, held: Held, bundle: Bundle, engine: Engine) -> None:
        most = engine.manifest.max_batch
        held.stream.allocate(
            {
                self._input: byte_size((most, *self._sides), np.uint8),
                self._output: byte_size((most, self._labels), np.float32),
            }
        )
        held.loader = self._library.module.Runtime(self._library.logger)
        held.engines = [deserialise(held.loader, self._library, engine, bundle, engine.manifest.file)]
        check_contract(held.engines[0], self._library, engine, bundle)
        held.contexts = make_contexts(held.engines[0], self._library, self._cache, engine)

    @property
    def _context(self) -> IExecutionContext:
        return self._device.held.contexts[0]

    def _enqueue(self, stream: Stream, batch: int) -> None:
        if self._captured.batch == batch and self._captured.graph is not None:
            stream.launch(self._captured.graph)
            return
        if self._captured.batch != batch:
            self._forget(stream)
            stream.wait()  # a pass that ran out of time may still read the old shape
            self._set_shape(stream, batch)
            self._captured.batch = batch
            self._execute(stream)
            return
        # The second pass of a shape: TensorRT has set itself up for it, and it can be captured.
        if self._captured.wanted and self._capture(stream):
            return
        self._execute(stream)

    def _capture(self, stream: Stream) -> bool:
        """Capture the pass and run it; False where it cannot be captured."""
        batch = self._captured.batch
        try:
            graph = self._recorded(stream)
        except DeviceLost:
            raise
        except SetupError as error:
            log.warning("the pass cannot be captured as a CUDA graph and runs without: %s", error)
            self._captured.wanted = False
            self._set_shape(stream, batch)
            self._captured.batch = batch
            return False
        self._captured.graph = graph
        self._device.held.graphs = [graph]
        stream.launch(graph)
        return True

    def _recorded(self, stream: Stream) -> int:
        """The pass as a graph that ``launch`` takes."""
        stream.begin_capture()
        try:
            self._execute(stream)
        except BaseException:
            # A stream that goes on recording would run nothing.
            with contextlib.suppress(SetupError):
                stream.forget(stream.end_capture())
            raise
        return stream.end_capture()

    def _forget(self, stream: Stream) -> None:
        graph, self._captured.graph, self._captured.batch = self._captured.graph, None, 0
        self._device.held.graphs = []
        if graph is not None:
            stream.forget(graph)

    def _set_shape(self, stream: Stream, batch: int) -> None:
        good = self._context.set_input_shape(self._input, (batch, *self._sides))
        for name, address in stream.addresses.items():
            good = good and self._context.set_tensor_address(name, address)
        if not good:
            raise self._failure(f"take {batch} images")

    def _execute(self, stream: Stream) -> None:
        if not self._context.execute_async_v3(stream.handle):
            raise self._failure("run")

    def _failure(self, what: str) -> SetupError:
        reason = self._library.reason()
        # Nothing of it is left in the context's shape.
        self._captured.batch = 0
        if is_memory(reason):
            return ResourceError(
                f"the GPU's memory is full, and the engine cannot {what}: {reason}; close other programs on "
                "it, or build the engine for fewer images with --max-batch"
            )
        return ProviderError(f"the engine could not {what}: {reason}; run: {self._verify}")


class _Captured:
    """The graph of the batch size that ran last: another shape makes a captured graph invalid."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.batch = 0
        self.graph: int | None = None
