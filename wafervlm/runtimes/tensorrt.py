"""TensorRT: runs an engine on the GPU, by the package and version that built it.

An execution context may be used by one thread at a time, so a lock stands around each run. A graph whose
shape does not change is captured and launched as one: by tensorrt_rtx itself, for tensorrt here.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine, build_command, verify_command
from wafervlm.engine_manifest import Place
from wafervlm.errors import (
    ClosedError,
    DeviceLost,
    MissingDependencyError,
    PredictionTimeout,
    ProviderError,
    ResourceError,
    SetupError,
    UsageError,
)
from wafervlm.render import RgbImage
from wafervlm.runtimes.cuda import Stream, byte_size, find_gpu
from wafervlm.runtimes.tensorrt_api import IExecutionContext, RtxCudaEngine
from wafervlm.runtimes.tensorrt_build import is_memory
from wafervlm.runtimes.tensorrt_cache import KernelCache
from wafervlm.runtimes.tensorrt_loading import check_contract, deserialise
from wafervlm.runtimes.tensorrt_package import INSTALL, RTX, import_library

log = logging.getLogger(__name__)


def find_place(engine: Engine, bundle: Bundle) -> Place:
    """Where ``engine`` would run. Raises MissingDependencyError and ProviderError where it cannot: without
    its package in its version, without a GPU, or on one that it was not built for."""
    manifest = engine.manifest
    again = build_command(engine.path, bundle.path)
    built = f"engine {engine.path} was built by {manifest.builder} {manifest.builder_version}"
    try:
        library = import_library(manifest.builder)
    except MissingDependencyError as error:
        wanted = f"{_distribution(manifest.builder)}=={manifest.builder_version}"
        raise MissingDependencyError(f"{built}, and only {wanted} can load it; {error}") from None
    if library.version != manifest.builder_version:
        raise ProviderError(
            f"{built}, and here is {library.version}, which cannot load it; build it again: {again}, or "
            f"install the other version: {INSTALL[manifest.builder]} "
            f"{_distribution(manifest.builder)}=={manifest.builder_version}"
        )
    capabilities = ", ".join(manifest.compute_capabilities)
    try:
        gpu = find_gpu()
    except ProviderError as error:
        raise type(error)(f"{built} for compute capability {capabilities}; {error}") from None
    if gpu.compute_capability not in manifest.compute_capabilities:
        raise ProviderError(
            f"{built} for compute capability {capabilities}, and the GPU here "
            f"({gpu.name}) has {gpu.compute_capability}; build it for this one: {again}"
        )
    return Place(gpu.name, gpu.compute_capability, gpu.driver, library.name, library.version)


class TensorRTRuntime:
    """One engine on the GPU; see ``wafervlm.runtimes.Runtime``.

    ``runtime_cache`` is a folder in which tensorrt_rtx keeps the kernels that it compiled for this GPU, so
    that the next start is quick; what lies there is executed, so it must be as well guarded as the engine.
    """

    def __init__(self, bundle: Bundle, engine: Engine, *, runtime_cache: Path | None = None) -> None:
        self.place = find_place(engine, bundle)
        self.max_batch: int | None = engine.manifest.max_batch
        self._library = import_library(engine.manifest.builder)
        self._lock = threading.Lock()
        self._lost: DeviceLost | None = None
        self._verify = verify_command(engine.path, bundle.path)
        self._input, self._output = bundle.manifest.graph.input, bundle.manifest.graph.output
        task = bundle.manifest.task
        self._labels = len(task.labels)
        self._sides = (task.render.height, task.render.width, 3)
        self._cache = KernelCache(self._library, runtime_cache, engine, self.place)
        started = time.perf_counter()
        # The stream first: it makes the device current, which TensorRT expects.
        self._stream: Stream | None = Stream(
            {
                self._input: byte_size((engine.manifest.max_batch, *self._sides), np.uint8),
                self._output: byte_size((engine.manifest.max_batch, self._labels), np.float32),
            }
        )
        try:
            self._loader = self._library.module.Runtime(self._library.logger)
            self._engine = deserialise(self._loader, self._library, engine, bundle)
            check_contract(self._engine, self._library, engine, bundle)
            self._context = self._make_context(engine)
        except BaseException:
            self._stream.close()
            raise
        # tensorrt_rtx captures by itself.
        self._captured = _Captured(wanted=self._library.rtx is None)
        log.debug("opened %s on %s in %.1f s", engine.path, self.place.gpu, time.perf_counter() - started)

    def run(self, images: RgbImage, deadline: float | None = None) -> NDArray[np.float32]:
        if len(images) > (self.max_batch or 0):
            raise UsageError(
                f"{len(images)} images at once are more than the engine takes, {self.max_batch}; pass fewer, "
                "or build it again with --max-batch"
            )
        with self._turn(deadline) as stream:
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
        with self._lock:
            stream, self._stream = self._stream, None
            if stream is None:
                return
            with contextlib.suppress(SetupError):
                stream.wait()
                self._captured.forget(stream)
            # In this order: a context reads its engine, and both the device memory.
            del self._context, self._engine, self._loader
            stream.close()

    @contextlib.contextmanager
    def _turn(self, deadline: float | None) -> Iterator[Stream]:
        """The stream for one thread at a time. Raises PredictionTimeout and ClosedError."""
        left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
        if left == 0 or not self._lock.acquire(timeout=left):
            raise PredictionTimeout(
                "the time allowed was over before the engine could run; allow it more time"
            )
        try:
            if self._lost is not None:
                raise DeviceLost(str(self._lost))
            if self._stream is None:
                raise ClosedError("this model was closed; load it again")
            self._stream.enter()
            yield self._stream
        except DeviceLost as error:
            self._lost = error
            raise
        finally:
            self._lock.release()

    def _enqueue(self, stream: Stream, batch: int) -> None:
        if self._captured.batch == batch and self._captured.graph is not None:
            stream.launch(self._captured.graph)
            return
        if self._captured.batch != batch:
            self._captured.forget(stream)
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

    def _make_context(self, engine: Engine) -> IExecutionContext:
        if self._library.rtx is None:
            context = self._engine.create_execution_context()
        else:
            rtx = cast(RtxCudaEngine, self._engine)
            config = rtx.create_runtime_config()
            config.cuda_graph_strategy = self._library.rtx.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # Otherwise a shape's first passes run slower kernels, other ones than those that come after.
            eager = self._library.rtx.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
            cache = self._cache.fill(config.create_runtime_cache)
            if cache is not None:
                config.set_runtime_cache(cache)
            context = rtx.create_execution_context(config)
        if context is None:
            needed = self._engine.device_memory_size_v2 / 1e6
            raise ResourceError(
                f"engine {engine.path} needs {needed:.0f} MB of the GPU's memory beside its weights and did "
                f"not get them: {self._library.reason()}; close other programs on the GPU, or build it for "
                "fewer images with --max-batch"
            )
        return context


class _Captured:
    """The graph of the batch size that ran last: another shape makes a captured graph invalid."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.batch = 0
        self.graph: int | None = None

    def forget(self, stream: Stream) -> None:
        graph, self.graph, self.batch = self.graph, None, 0
        if graph is not None:
            stream.forget(graph)


def _distribution(builder: str) -> str:
    return "tensorrt-rtx" if builder == RTX else "tensorrt"
