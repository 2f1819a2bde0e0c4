"""Stand-ins that compute: engines whose contexts run the bundle's own graphs by ONNX Runtime, on host memory.

They hold a program to what TensorRT asks for: shapes within the context's profile, addresses for all tensors
at multiples of 256 bytes and within memory that is allocated, outputs that lie apart from what is read, and
nothing before its turn in the stream: what is enqueued runs when the stream is waited for.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.wafervlm.fake_tensorrt import OK, FakeCuda, Status, fake_config
from wafervlm.bundle import Bundle, open_bundle
from wafervlm.runtimes.cuda import ALIGNMENT
from wafervlm.runtimes.onnx import open_session
from wafervlm.runtimes.tensorrt_build import Shapes
from wafervlm.runtimes.tensorrt_package import Messages

TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int64)": np.int64}
STREAM = 77


class QueueCuda(FakeCuda):
    """CUDA whose stream does its work when it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Callable[[], object]] = []
        self.copied_back = 0

    def run(self) -> None:
        queue, self.queue = self.queue, []
        for work in queue:
            work()

    def check(self, address: int, size: int, what: str) -> None:
        """Refuse bytes that lie in no block of this memory."""
        inside = any(start <= address and address + size <= start + n for start, n in self.sizes.items())
        assert inside, f"{what} lies in no memory of the device"

    def _cudaFree(self, address: int) -> tuple[Any, ...]:  # noqa: N802
        self.run()  # the real one waits for the device
        del self.sizes[address]
        return super()._cudaFree(address)

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, way: int, _: Any) -> tuple[Any, ...]:  # noqa: N802
        if way == self.cudaMemcpyKind.cudaMemcpyHostToDevice:
            self.check(to, size, "what is written")
            staged = ctypes.string_at(source, size)  # CUDA takes pageable memory at the call
            self.queue.append(lambda: ctypes.memmove(to, staged, size))
        else:
            self.check(source, size, "what is read back")
            self.copied_back += size
            self.queue.append(lambda: ctypes.memmove(to, source, size))
        return (OK,)

    def _cudaStreamSynchronize(self, _: int) -> tuple[Any, ...]:  # noqa: N802
        self.run()
        return (OK,)

    def _cudaStreamQuery(self, _: int) -> tuple[Any, ...]:  # noqa: N802
        if self.busy:
            return (Status(600, "cudaErrorNotReady"),)
        pending = bool(self.queue)
        self.run()
        return (Status(600, "cudaErrorNotReady") if pending else OK,)


class GraphEngine:
    """An engine that is one graph of ``bundle``, at exact accuracy."""

    device_memory_size_v2 = 5_000_000

    def __init__(
        self, bundle: Bundle, file: str, cuda: QueueCuda, messages: Messages, profiles: Sequence[Shapes] = ()
    ) -> None:
        self.session = _session(bundle.path, file)
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.outputs = {item.name: item for item in self.session.get_outputs()}
        self.tensors = {**self.inputs, **self.outputs}
        self.cuda, self.messages, self.profiles = cuda, messages, list(profiles)
        self.contexts: list[GraphContext] = []
        self.change: Callable[[dict[str, NDArray[Any]]], None] = lambda _: None

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return max(1, len(self.profiles))

    def get_tensor_name(self, index: int) -> str:
        return str(list(self.tensors)[index])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(n if isinstance(n, int) else -1 for n in self.tensors[name].shape)
        return shape or self.given(name)

    def given(self, name: str) -> tuple[int, ...]:
        """A shape that the file leaves out, from a graph that reads the tensor."""
        return self.shapes_elsewhere[name]

    shapes_elsewhere: dict[str, tuple[int, ...]] = {}  # noqa: RUF012

    def get_tensor_profile_shape(self, name: str, profile: int) -> Sequence[Sequence[int]]:
        return self.profiles[profile][name]

    def create_runtime_config(self) -> Any:
        return fake_config()

    def create_execution_context(self, *_: Any) -> GraphContext:
        self.contexts.append(GraphContext(self))
        return self.contexts[-1]


@functools.cache
def _session(path: Path, file: str) -> Any:
    return open_session(open_bundle(path), file, device="cpu", threads=1, accuracy_level=0)


class GraphContext:
    """Runs the graph on what lies at the addresses that it was given."""

    def __init__(self, engine: GraphEngine) -> None:
        self.engine = engine
        self.profile: int | None = 0 if len(engine.profiles) < 2 else None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.refuse = ""
        self.executed = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == STREAM
        self.profile = index
        self.shapes.clear()
        return not self.refuse

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self.profile is not None, "no profile was chosen"
        assert name in self.engine.inputs
        wanted = self.engine.get_tensor_shape(name)
        assert len(shape) == len(wanted)
        if self.engine.profiles:
            least, _, most = self.engine.profiles[self.profile][name]
            if not all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True)):
                self.engine.messages.add(f"{name} of shape {tuple(shape)} is outside the profile")
                return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self.engine.tensors
        assert memory % ALIGNMENT == 0, f"{name} begins at no multiple of {ALIGNMENT} bytes"
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == STREAM
        self.executed += 1
        if self.refuse:
            self.engine.messages.add(self.refuse)
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self.engine.cuda.queue.append(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        engine, regions = self.engine, {}
        inputs = {}
        for name, item in engine.inputs.items():
            shape = shapes.get(name, engine.get_tensor_shape(name))
            assert -1 not in shape, f"{name} was given no shape"
            dtype = TYPES[item.type]
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            engine.cuda.check(addresses[name], size, name)
            regions[name] = (addresses[name], size)
            inputs[name] = np.frombuffer(ctypes.string_at(addresses[name], size), dtype).reshape(shape)
        found = dict(zip(engine.outputs, engine.session.run(None, inputs), strict=True))
        engine.change(found)
        for name, values in found.items():
            engine.cuda.check(addresses[name], values.nbytes, name)
            for other, (start, size) in regions.items():
                apart = addresses[name] + values.nbytes <= start or start + size <= addresses[name]
                assert apart, f"{name} is written over {other}"
            regions[name] = (addresses[name], values.nbytes)
            ctypes.memmove(addresses[name], np.ascontiguousarray(values).ctypes.data, values.nbytes)
