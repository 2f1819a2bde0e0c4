"""OpenVINO: runs a bundle's graph on the CPU.

One run uses all threads, and further ones wait their turn. Images go through one at a time: a graph of a
fixed shape is quicker, and integers are scaled over a whole tensor, where an answer must not depend on the
wafers beside it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.errors import (
    ClosedError,
    MissingDependencyError,
    PredictionTimeout,
    ProviderError,
    ResourceError,
    WaferVLMError,
    import_fault,
)
from wafervlm.manifest import Graph
from wafervlm.render import RgbImage
from wafervlm.runtimes.contract import Port, check_contract

log = logging.getLogger(__name__)

INSTALL = "pip install 'wafervlm[openvino]'"
TYPES = {"u8": "uint8", "f32": "float32"}
PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}

# Left alone, OpenVINO computes in bfloat16 where the processor can, and rounds the activations before 4-bit
# weights to 8-bit integers in groups of 32.
_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
_NO_INTEGERS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}

# The field number, length and text of the key under which ONNX names a tensor's file.
_EXTERNAL_KEY = b"\n\x08location"


class OpenVinoRuntime:
    """A bundle's graph compiled by OpenVINO for this CPU; see ``wafervlm.runtimes.Runtime``.

    A run ends at its deadline, or, where one is at work then, after the operator that is. What OpenVINO
    compiled is not kept on disk.
    """

    max_batch: int | None = None

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, accuracy_level: int | None = None
    ) -> None:
        graph = bundle.manifest.graph
        level = graph.accuracy_level if accuracy_level is None else accuracy_level
        started = time.perf_counter()
        compiled = _compile(bundle, settings(graph, threads=threads, accuracy_level=level))
        self._request: Any = compiled.create_infer_request()
        self._output = graph.output
        self._lock = threading.Lock()
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.about = f"computing in {PRECISIONS.get(precision, precision)}"
        took = 1e3 * (time.perf_counter() - started)
        log.debug("opened %s in OpenVINO, %s, in %.0f ms", bundle.path / graph.file, self.about, took)

    def run(self, images: RgbImage, deadline: float | None = None) -> NDArray[np.float32]:
        with self._turn(deadline) as request:
            return np.concatenate([self._infer(request, image[None], deadline) for image in images])

    def close(self) -> None:
        with self._lock:
            self._request = None

    @contextlib.contextmanager
    def _turn(self, deadline: float | None) -> Iterator[Any]:
        """The request, which one thread at a time may use."""
        if not self._lock.acquire(timeout=-1 if deadline is None else _left(deadline)):
            raise PredictionTimeout(
                "the time allowed was over before runs of other threads were; allow it more time"
            )
        try:
            if self._request is None:
                raise ClosedError("this model was closed; load it again")
            yield self._request
        finally:
            self._lock.release()

    def _infer(self, request: Any, image: RgbImage, deadline: float | None) -> NDArray[np.float32]:
        left = None if deadline is None else _left(deadline)
        try:
            request.start_async([image], share_inputs=True)
            over = left is None or request.wait_for(math.ceil(1e3 * left))
            if over:
                request.wait()
        except RuntimeError as error:
            raise _error(error, "could not run the graph") from error
        except BaseException:
            _stop(request)
            raise
        if not over:
            _stop(request)
            raise PredictionTimeout("the prediction was stopped at its timeout; allow it more time")
        return np.array(request.get_tensor(self._output).data, dtype=np.float32)


def settings(graph: Graph, *, threads: int | None, accuracy_level: int) -> dict[str, Any]:
    """What OpenVINO compiles ``graph`` with: for the latency of one image, on all cores where ``threads`` is
    None.

    At accuracy level 0 all but the graph's own integers is float32; else OpenVINO takes what is quickest on
    this processor. Where the vision tower computes in integers that too is float32: bfloat16 before rounding
    to integers doubles what is lost, and is hardly quicker.
    """
    precision: dict[str, Any] = {**_FLOAT32, **_NO_INTEGERS} if accuracy_level == 0 else {}
    if graph.vision == "int8":
        precision |= _FLOAT32
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Pinned threads of two processes would share one core and leave another idle.
        "ENABLE_CPU_PINNING": False,
        **({} if threads is None else {"INFERENCE_NUM_THREADS": threads}),
        **precision,
    }


def import_openvino() -> Any:
    """Import openvino with its telemetry off. Raises MissingDependencyError.

    Its package (seen in 2026.4), on being imported, writes an identifier into the home folder and sends an
    event to Google where openvino_telemetry can be imported. Where the program imported openvino earlier by
    itself, that has happened.
    """
    found = "openvino_telemetry" in sys.modules
    if not found:
        # None makes its import fail, and openvino then takes a stand-in of its own.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        openvino = importlib.import_module("openvino")
        openvino.Core, openvino.__version__  # noqa: B018
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"openvino {import_fault('openvino', error)}; install it with: {INSTALL}"
        ) from None
    finally:
        if not found:
            del sys.modules["openvino_telemetry"]
    return openvino


def _compile(bundle: Bundle, wanted: dict[str, Any]) -> Any:
    """The compiled model. Raises what ``open_runtime`` raises."""
    openvino = import_openvino()
    graph, spec = bundle.manifest.graph, bundle.manifest.task.render
    where = bundle.path / graph.file
    data = bundle.read(graph.file)
    # The digest is of these very bytes where the graph is whole. Weights in a file of their own are looked
    # for beside it only where it has a path, else in the working directory; it and they are then read again
    # from the bundle's folder, and not outside it, after their digests were compared.
    source = where if _EXTERNAL_KEY in data else data
    core = openvino.Core()
    try:
        model = core.read_model(source)
        check_contract(bundle, _ports(model.inputs), _ports(model.outputs))
        model.reshape({graph.input: [1, spec.height, spec.width, 3]})
        return core.compile_model(model, "CPU", wanted)
    except RuntimeError as error:
        what = f"{openvino.__version__} cannot open {where}, though the file is as it was written"
        raise _error(error, what) from None


def _ports(items: Any) -> dict[str, Port]:
    return {
        item.any_name: Port(
            TYPES.get(item.element_type.get_type_name(), item.element_type.get_type_name()),
            [None if size.is_dynamic else size.get_length() for size in item.partial_shape],
        )
        for item in items
    }


def _stop(request: Any) -> None:
    """End the run of ``request``, which then can take another: the operator at work is finished first."""
    request.cancel()
    with contextlib.suppress(RuntimeError):
        request.wait()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise PredictionTimeout("the time allowed was over before the graph could run; allow it more time")
    return left


def _error(error: Exception, what: str) -> WaferVLMError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    if "bad_alloc" in str(error) or "allocate" in reason.lower():
        return ResourceError(f"OpenVINO ran out of memory ({reason}); close other programs")
    return ProviderError(f"OpenVINO {what}: {reason}; predict with --runtime onnx")
