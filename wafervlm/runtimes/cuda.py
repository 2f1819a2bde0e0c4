"""The GPU through cuda-python: which one is there, its memory, one stream, and captured graphs.

Device 0 is used; CUDA_VISIBLE_DEVICES says which that is.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import (
    DeviceLost,
    MissingDependencyError,
    ProviderError,
    ResourceError,
    SetupError,
    WaferVLMError,
    import_fault,
)

INSTALL = "pip install cuda-bindings"

ALIGNMENT = 256
"""Bytes at whose multiples TensorRT wants each tensor to begin; cudaMalloc's blocks do."""

# After these every later call of the process fails too: the device or its context is lost.
FATAL = (
    *("cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorLaunchTimeout", "cudaErrorAssert"),
    *("cudaErrorECCUncorrectable", "cudaErrorHardwareStackError", "cudaErrorIllegalInstruction"),
    *("cudaErrorMisalignedAddress", "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc"),
    *("cudaErrorDevicesUnavailable", "cudaErrorDeviceUninitialized", "cudaErrorNvlinkUncorrectable"),
    *("cudaErrorContextIsDestroyed", "cudaErrorUnknown"),
)
_ABSENT = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorStubLibrary")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The GPU that is there: name, compute capability as in "8.9", the CUDA version that its driver serves,
    and its memory in bytes."""

    name: str
    compute_capability: str
    driver: str
    memory: int


def find_gpu() -> Gpu:
    """The GPU of this machine. Raises MissingDependencyError without cuda-python, ProviderError without a
    driver or a GPU."""
    cuda = Cuda()
    if cuda.call("cudaGetDeviceCount") < 1:
        raise ProviderError("there is no GPU here; look at what nvidia-smi shows")
    properties = cuda.call("cudaGetDeviceProperties", 0)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    version = int(cuda.call("cudaDriverGetVersion"))
    return Gpu(
        name=name.rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=f"{version // 1000}.{version % 1000 // 10}",
        memory=int(properties.totalGlobalMem),
    )


def driver_gpus() -> int:
    """How many GPUs the CUDA driver shows this process, asked without any package; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class Cuda:
    """CUDA's runtime functions, each failure as one error of ours."""

    def __init__(self) -> None:
        self._runtime = import_runtime()

    def call(self, function: str, *arguments: Any) -> Any:
        """Call ``function`` and return what it gives besides its status: nothing, a value or a tuple."""
        status, *values = getattr(self._runtime, function)(*arguments)
        if int(status) != 0:
            raise self._error(function, status)
        return values[0] if len(values) == 1 else tuple(values) or None

    def is_done(self, stream: Any) -> bool:
        """Whether all work in ``stream`` has ended."""
        (status,) = self._runtime.cudaStreamQuery(stream)
        if status.name == "cudaErrorNotReady":
            return False
        if int(status) != 0:
            raise self._error("cudaStreamQuery", status)
        return True

    def constant(self, kind: str, name: str) -> Any:
        """A member of an enumeration, or a plain constant where ``kind`` is empty."""
        return getattr(getattr(self._runtime, kind), name) if kind else getattr(self._runtime, name)

    def _error(self, function: str, status: Any) -> WaferVLMError:
        text = f"{function} gave {status.name}"
        if status.name == "cudaErrorMemoryAllocation":
            return ResourceError(
                f"the GPU's memory is full ({text}); close other programs on it, or build the engine for "
                "fewer images with --max-batch"
            )
        if status.name in _ABSENT:
            return ProviderError(
                f"no GPU can be used here ({text}): there is no NVIDIA driver, it is too old for this "
                "cuda-python, or it sees no GPU; look at what nvidia-smi shows"
            )
        if status.name in FATAL:
            return DeviceLost(
                f"the GPU stopped answering ({text}); start the program again, and where that does not "
                "help look at nvidia-smi; predicting with --runtime onnx needs no GPU"
            )
        return ProviderError(f"the GPU refused a call ({text}); run: wafervlm doctor")


@functools.cache
def import_runtime() -> Any:
    """The module cuda.bindings.runtime. Raises MissingDependencyError."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"cuda-python {import_fault('cuda', error)}; install it with: {INSTALL}, of the major version of "
            "CUDA that nvidia-smi shows"
        ) from None


class Memory:
    """One block of the GPU's memory in which each name has its own bytes; ``addresses`` says where.

    Dropping the last reference frees it, as ``close`` does; that ends what runs on the GPU first.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        cuda = Cuda()
        steps = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values()]
        block = int(cuda.call("cudaMalloc", max(sum(steps), ALIGNMENT)))
        starts = accumulate([block, *steps[:-1]])
        self.addresses = dict(zip(sizes, starts, strict=True))
        self._free = weakref.finalize(self, _release, cuda, [("cudaFree", block)])

    def close(self) -> None:
        """Free the block. Closing twice does nothing."""
        self._free()


class Stream:
    """One stream with the buffers of its graphs, by tensor name. Use it from one thread at a time."""

    def __init__(self) -> None:
        self._cuda = Cuda()
        self._cuda.call("cudaSetDevice", 0)
        self._memory: list[Memory] = []
        self.addresses: dict[str, int] = {}
        self.handle = int(
            self._cuda.call("cudaStreamCreateWithFlags", self._cuda.constant("", "cudaStreamNonBlocking"))
        )

    def allocate(self, sizes: Mapping[str, int]) -> None:
        """Add buffers of ``sizes`` bytes. Raises ResourceError where the memory is full."""
        self._memory.append(Memory(sizes))
        self.addresses |= self._memory[-1].addresses

    def enter(self) -> None:
        """Make the device this thread's current one."""
        self._cuda.call("cudaSetDevice", 0)

    def upload(self, name: str, array: NDArray[Any]) -> None:
        """Copy ``array``, contiguous, into the buffer ``name``."""
        self._copy(self.addresses[name], array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, name: str, array: NDArray[Any]) -> None:
        """Copy the buffer ``name`` into ``array``; all work before it has ended then."""
        self._copy(array.ctypes.data, self.addresses[name], array.nbytes, "cudaMemcpyDeviceToHost")
        self.wait()

    def wait(self) -> None:
        """Return when all work in the stream has ended."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def wait_until(self, deadline: float) -> bool:
        """Whether all work ended before ``deadline``, a time.monotonic()."""
        while not self._cuda.is_done(self.handle):
            if time.monotonic() >= deadline:
                return False
            time.sleep(5e-5)
        return True

    def begin_capture(self) -> None:
        """Record what is enqueued from now on instead of running it."""
        mode = self._cuda.constant("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal")
        self._cuda.call("cudaStreamBeginCapture", self.handle, mode)

    def end_capture(self) -> int:
        """What was recorded, ready for ``launch``."""
        graph = self._cuda.call("cudaStreamEndCapture", self.handle)
        try:
            return int(self._cuda.call("cudaGraphInstantiate", graph, 0))
        finally:
            self._cuda.call("cudaGraphDestroy", graph)

    def launch(self, graph: int) -> None:
        """Enqueue all that was recorded."""
        self._cuda.call("cudaGraphLaunch", graph, self.handle)

    def forget(self, graph: int) -> None:
        """Free what ``end_capture`` gave."""
        self._cuda.call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free the buffers and the stream; a device that is lost has freed them already."""
        memory, self._memory, self.addresses = self._memory, [], {}
        for block in memory:
            block.close()
        _release(self._cuda, [("cudaStreamDestroy", self.handle)])

    def _copy(self, to: int, source: int, size: int, kind: str) -> None:
        way = self._cuda.constant("cudaMemcpyKind", kind)
        self._cuda.call("cudaMemcpyAsync", to, source, size, way, self.handle)


def _release(cuda: Cuda, calls: Sequence[tuple[str, int]]) -> None:
    """Give back what the handles stand for; a device that is lost has done so already."""
    for function, handle in calls:
        try:
            cuda.call(function, handle)
        except DeviceLost:
            return
        except SetupError:
            continue


def byte_size(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    """Bytes of an array."""
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
