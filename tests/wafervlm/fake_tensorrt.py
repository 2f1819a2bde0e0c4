"""Stand-ins for tensorrt, tensorrt_rtx and cuda-python: what they return and how they fail.

No engine is executed by them: the "device" is host memory, and the "engine" copies canned scores. They
serve to test what becomes of errors, locks and files, and prove nothing about numbers.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.runtimes import cuda
from wafervlm.runtimes.tensorrt_package import Library, Messages


class Status(int):
    """A cudaError_t: a number with a name."""

    name: str

    def __new__(cls, value: int, name: str) -> Status:
        status = super().__new__(cls, value)
        status.name = name
        return status


OK = Status(0, "cudaSuccess")


class FakeCuda:
    """The functions of cuda.bindings.runtime over host memory; ``fail`` names those that give an error."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, capability: tuple[int, int] = (8, 9)) -> None:
        self.capability = capability
        self.fail: dict[str, str] = {}
        self.memory: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}
        self.calls: list[str] = []
        self.busy = False

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                return (Status(1, self.fail[name]), None)
            return getattr(self, f"_{name}", lambda *_: (OK,))(*arguments)

        return call

    def _cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        return OK, 1

    def _cudaGetDeviceProperties(self, _: int) -> tuple[Any, ...]:  # noqa: N802
        major, minor = self.capability
        return OK, SimpleNamespace(name=b"Fake GPU", major=major, minor=minor, totalGlobalMem=8 << 30)

    def _cudaDriverGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return OK, 13000

    def _cudaStreamCreateWithFlags(self, _: int) -> tuple[Any, ...]:  # noqa: N802
        return OK, 77

    def _cudaMalloc(self, size: int) -> tuple[Any, ...]:  # noqa: N802
        block = ctypes.create_string_buffer(size + cuda.ALIGNMENT)
        start = -(-ctypes.addressof(block) // cuda.ALIGNMENT) * cuda.ALIGNMENT
        self.memory[start] = block
        self.sizes[start] = size
        return OK, start

    def _cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        del self.memory[address]
        return (OK,)

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, *_: Any) -> tuple[Any, ...]:  # noqa: N802
        ctypes.memmove(to, source, size)
        return (OK,)

    def _cudaStreamQuery(self, _: int) -> tuple[Any, ...]:  # noqa: N802
        return (Status(600, "cudaErrorNotReady") if self.busy else OK,)

    def _cudaStreamEndCapture(self, _: int) -> tuple[Any, ...]:  # noqa: N802
        return OK, 88

    def _cudaGraphInstantiate(self, *_: Any) -> tuple[Any, ...]:  # noqa: N802
        return OK, 99


class FakeContext:
    """An execution context that writes ``scores`` (L,), for each image, to its output."""

    def __init__(self, scores: NDArray[np.float32], messages: Messages) -> None:
        self.scores, self.messages = scores, messages
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.refuse = ""
        self.executed = 0

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, _: int) -> bool:
        self.executed += 1
        if self.refuse:
            self.messages.add(self.refuse)
            return False
        rows = np.tile(self.scores, (self.shape[0], 1))
        ctypes.memmove(self.addresses["label_log_probs"], rows.ctypes.data, rows.nbytes)
        return True


class FakeEngine:
    device_memory_size_v2 = 5_000_000
    num_io_tensors = 2

    def __init__(self, context: FakeContext | None, side: int, max_batch: int) -> None:
        self.context, self.side, self.max_batch = context, side, max_batch
        self.labels = len(context.scores) if context else 0
        self.config = fake_config()

    def get_tensor_name(self, index: int) -> str:
        return ("image", "label_log_probs")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if name == "image" else "float"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, self.side, self.side, 3) if name == "image" else (-1, self.labels)

    def get_tensor_profile_shape(self, *_: Any) -> list[tuple[int, ...]]:
        return [(count, self.side, self.side, 3) for count in (1, 1, self.max_batch)]

    def create_runtime_config(self) -> Any:
        return self.config

    def create_execution_context(self, *_: Any) -> FakeContext | None:
        return self.context


def fake_config() -> Any:
    """A runtime config of tensorrt_rtx."""
    return SimpleNamespace(
        create_runtime_cache=FakeKernels,
        set_runtime_cache=lambda _: True,
        set_execution_context_allocation_strategy=lambda _: None,
    )


class FakeKernels:
    """A runtime cache that takes what another one wrote."""

    taken: bytes = b""

    def serialize(self) -> bytes:
        return b"kernels"

    def deserialize(self, blob: bytes) -> bool:
        FakeKernels.taken = blob
        return blob == b"kernels"


def fake_library(
    name: str, version: str, engine: FakeEngine | dict[bytes, Any] | None, messages: Messages
) -> Library:
    """``engine`` is what any bytes become, or what each of the given ones does."""

    def runtime(_: Any) -> Any:
        def load(data: bytes) -> Any:
            if engine is None:
                messages.add("Engine could not be deserialized")
            return engine[data] if isinstance(engine, dict) else engine

        return SimpleNamespace(deserialize_cuda_engine=load)

    module: Any = SimpleNamespace(
        __version__=version,
        Runtime=runtime,
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        DataType=SimpleNamespace(UINT8="uint8", FLOAT="float"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="disabled"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager", NONE="none"),
        ExecutionContextAllocationStrategy=SimpleNamespace(STATIC="static", ON_PROFILE_CHANGE="change"),
    )
    logger: Any = None
    return Library(name, module, logger, messages)


def install(monkeypatch: Any, library: Library, device: FakeCuda) -> None:
    """Have wafervlm find ``library`` and ``device``."""
    monkeypatch.setattr(cuda, "import_runtime", lambda: device)
    for module in ("runtimes.tensorrt", "runtimes.tensorrt_loading", "runtimes.tensorrt_target"):
        monkeypatch.setattr(f"wafervlm.{module}.import_library", lambda _: library)
    monkeypatch.setattr("wafervlm.words.tensorrt_steps.import_library", lambda _: library)
