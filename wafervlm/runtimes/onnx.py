"""ONNX Runtime: runs a bundle's graph on the CPU, or on a GPU with its own build of ONNX Runtime."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
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
    UsageError,
    WaferVLMError,
    import_fault,
)
from wafervlm.render import RgbImage
from wafervlm.runtimes.contract import Port, check_contract

log = logging.getLogger(__name__)
_PRELOADING, _PRELOADED = threading.Lock(), threading.Event()

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
INSTALL = {
    "cpu": "pip install 'wafervlm[cpu]'",
    "cuda": "pip uninstall onnxruntime, then pip install 'wafervlm[gpu]'",
}


class OnnxRuntime:
    """One ONNX Runtime session over a bundle's graph; see ``wafervlm.runtimes.Runtime``."""

    max_batch: int | None = None

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        threads: int | None = None,
        accuracy_level: int | None = None,
    ) -> None:
        graph = bundle.manifest.graph
        self._input, self._output = graph.input, graph.output
        # Integers are scaled over a whole tensor: an answer must not depend on the wafers beside it.
        self._one_by_one = graph.vision == "int8"
        level = graph.accuracy_level if accuracy_level is None else accuracy_level
        self._ort = import_onnxruntime()
        self._session: Any = open_session(
            bundle, graph.file, device=device, threads=threads, accuracy_level=level
        )
        check_contract(bundle, _ports(self._session.get_inputs()), _ports(self._session.get_outputs()))

    def run(self, images: RgbImage, deadline: float | None = None) -> NDArray[np.float32]:
        session = self._session
        if session is None:
            raise ClosedError("this model was closed; load it again")
        options = self._ort.RunOptions()
        parts = np.split(images, len(images)) if self._one_by_one else [images]
        with _stopped_at(options, deadline) as stop:
            try:
                scores = [session.run([self._output], {self._input: part}, options)[0] for part in parts]
            except Exception as error:
                if stop.fired:
                    raise PredictionTimeout(
                        "the prediction was stopped at its timeout; allow it more time"
                    ) from None
                raise run_error(error, f"{len(parts[0])} images at once; pass fewer at a time") from error
        return np.concatenate(scores)

    def close(self) -> None:
        self._session = None


def session_options(ort: Any, bundle: Bundle, *, threads: int | None, accuracy_level: int) -> Any:
    """The SessionOptions a bundle's graph runs with; also what comparisons must use to be fair."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    entries = {
        "session.qdq_matmulnbits_accuracy_level": str(accuracy_level),
        # Threads wait actively inside a run, which is fast, but not between runs.
        "session.force_spinning_stop": "1",
        # Otherwise weights kept beside the graph would be looked for in the working directory.
        "session.model_external_initializers_file_folder_path": str(bundle.path),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off. Raises MissingDependencyError.

    Its official builds (seen in 1.31), on being imported, write a device identifier and a database into
    the home folder and send events to Microsoft unless this variable is set before. Where the program
    imported onnxruntime earlier by itself, only what is still to come can be switched off.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort

        ort.disable_telemetry_events()
    except (ImportError, AttributeError) as error:
        raise MissingDependencyError(_unusable(error)) from None
    return ort


def _unusable(error: Exception) -> str:
    """What the matter is with onnxruntime, and what to do; another runtime that is here is named."""
    fault = import_fault("onnxruntime", error)
    # Uninstalling one of its two builds leaves the other a folder without its contents.
    force = "" if fault == "is not installed" else " with --force-reinstall"
    other = ", or take --runtime openvino, which is installed" if find_spec("openvino") else ""
    return f"onnxruntime {fault}; install it with: {INSTALL['cpu']}{force}{other}"


def open_session(
    bundle: Bundle,
    file: str,
    *,
    device: str,
    threads: int | None,
    accuracy_level: int,
    profile: Path | None = None,
) -> Any:
    """A session over the graph ``file`` of a bundle; with ``profile``, the beginning of a file's name, it
    writes down what each node took. Raises ProviderError, MissingDependencyError, ResourceError and
    UsageError."""
    ort = import_onnxruntime()
    provider = _provider(ort, device)
    options = session_options(ort, bundle, threads=threads, accuracy_level=accuracy_level)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # The digest is of these very bytes, so no one can exchange the file after it was checked.
    data = bundle.read(file)
    if device == "cuda":
        _preload(ort)
    started = time.perf_counter()
    try:
        session = ort.InferenceSession(data, sess_options=options, providers=[provider])
    except Exception as error:
        raise _load_error(ort, bundle.path / file, error) from None
    # ONNX Runtime falls back to the CPU with a mere warning.
    if provider not in session.get_providers():
        raise ProviderError(
            f"{provider} did not start and ONNX Runtime fell back to {session.get_providers()}; "
            f"check the driver, or {INSTALL[device]}"
        )
    session.disable_fallback()
    log.debug(
        "opened %s on %s in %.0f ms", bundle.path / file, provider, 1e3 * (time.perf_counter() - started)
    )
    return session


def _preload(ort: Any) -> None:
    """Load the CUDA libraries that pip installed, which no search path names, once in a process. What it
    cannot load may be on the system: the session says so where it is not."""
    with _PRELOADING:
        if _PRELOADED.is_set():
            return
        _PRELOADED.set()
        said = io.StringIO()
        try:
            # Its notes would stand amid results.
            with redirect_stdout(said):
                ort.preload_dlls()
        except Exception as error:
            log.debug("ONNX Runtime did not look for the CUDA libraries of pip: %s", error)
        if said.getvalue():
            log.debug("ONNX Runtime on the CUDA libraries: %s", said.getvalue().strip())


def _provider(ort: Any, device: str) -> str:
    if device not in PROVIDERS:
        raise UsageError(f"there is no device {device!r} for ONNX Runtime; known are {', '.join(PROVIDERS)}")
    provider, available = PROVIDERS[device], ort.get_available_providers()
    if provider not in available:
        raise ProviderError(
            f"device {device!r} needs {provider}, and this ONNX Runtime {ort.__version__} has only "
            f"{', '.join(available)}; {INSTALL[device]}"
        )
    return provider


def _ports(items: Any) -> dict[str, Port]:
    """The inputs or outputs of a session; a dynamic size has a name there, and no number."""
    return {
        item.name: Port(
            TYPES.get(item.type, item.type),
            [size if isinstance(size, int) else None for size in item.shape],
        )
        for item in items
    }


def _load_error(ort: Any, where: Path, error: Exception) -> WaferVLMError:
    if _is_memory(error):
        return ResourceError(
            f"not enough memory to open {where}; close other programs or take a smaller bundle"
        )
    return ProviderError(
        f"ONNX Runtime {ort.__version__} cannot open {where}, though the file is as it was written: "
        f"{_first_line(error)}; upgrade onnxruntime, or export the bundle again"
    )


def run_error(error: Exception, what: str) -> WaferVLMError:
    """The error of ours that stands for what a session raised while it ran ``what``."""
    if _is_memory(error):
        return ResourceError(f"not enough memory to run {what}")
    return ProviderError(f"ONNX Runtime could not run the graph: {_first_line(error)}")


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "bad_alloc" in text or "failed to allocate" in text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(slots=True)
class _Stop:
    fired: bool = False


@contextmanager
def _stopped_at(options: Any, deadline: float | None) -> Iterator[_Stop]:
    """Have the run that ``options`` belong to stop at ``deadline``; ``fired`` says whether it was told to."""
    stop = _Stop()
    if deadline is None:
        yield stop
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise PredictionTimeout("the time allowed was over before the graph could run; allow it more time")

    def fire() -> None:
        stop.fired = True
        options.terminate = True

    timer = threading.Timer(left, fire)
    timer.daemon = True
    timer.start()
    try:
        yield stop
    finally:
        timer.cancel()
