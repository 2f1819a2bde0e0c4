"""Runtimes: what executes a bundle's graph. Each is a module here, imported when it is asked for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.cores import check_threads
from wafervlm.errors import SetupError, UsageError
from wafervlm.render import RgbImage

if TYPE_CHECKING:
    from wafervlm.engine import Engine

RUNTIMES = ("auto", "onnx", "onnx-cuda", "openvino", "tensorrt")


class Runtime(Protocol):
    """A graph ready to run. Safe to call from several threads at once.

    ``max_batch`` is how many images one run takes, None where there is no end.
    """

    max_batch: int | None

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
    engine: Engine | None = None,
    runtime_cache: Path | None = None,
) -> Runtime:
    """Make the graph of ``bundle`` ready on ``device``.

    ``threads`` is how many threads one run uses, one per core when None; ``accuracy_level`` overrides
    the manifest's. ``engine`` is what runtime ``tensorrt`` runs, and ``runtime_cache`` the folder in which
    it keeps compiled kernels. Raises UsageError for a name that does not exist, ProviderError and
    MissingDependencyError for what this machine lacks.
    """
    if name not in RUNTIMES or name == "auto":
        raise UsageError(f"there is no runtime {name!r}; known are {', '.join(RUNTIMES)}")
    check_threads(threads)
    if name == "tensorrt":
        return _open_tensorrt(bundle, engine, runtime_cache)
    if engine is not None or runtime_cache is not None:
        raise UsageError(
            f"runtime {name!r} runs no engine and keeps no runtime cache; leave them out, or take runtime "
            "'tensorrt'"
        )
    if name == "openvino":
        if device != "cpu":
            raise UsageError(f"runtime 'openvino' runs on the CPU alone, and device is {device!r}")
        from wafervlm.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(bundle, threads=threads, accuracy_level=accuracy_level)
    from wafervlm.runtimes.onnx import OnnxRuntime

    device = "cuda" if name == "onnx-cuda" else device
    return OnnxRuntime(bundle, device=device, threads=threads, accuracy_level=accuracy_level)


def choose_runtime(bundle: Bundle, engine: Engine | None) -> tuple[str, str]:
    """The runtime that ``auto`` stands for on this machine, and why: the engine where there is one that can
    run here, else ONNX Runtime on the GPU where it has it, else on the CPU. OpenVINO, whose scores differ a
    little from those that the bundle was measured with, is chosen only where there is no ONNX Runtime.
    Nothing is opened."""
    reasons: list[str] = []
    for name in ("tensorrt", "onnx-cuda"):
        try:
            return name, "; ".join([*reasons, usable(name, bundle, engine)])
        except SetupError as error:
            reasons.append(f"not {name}: {error}")
    if find_spec("openvino") is not None:
        if find_spec("onnxruntime") is None:
            return "openvino", "; ".join([*reasons, "not onnx: onnxruntime is not installed"])
        reasons.append("not openvino, which is taken only where it is named, or alone")
    return "onnx", "; ".join(reasons)


def usable(name: str, bundle: Bundle, engine: Engine | None) -> str:
    """Why runtime ``name`` can be used here. Raises SetupError where it cannot."""
    if name == "tensorrt":
        if engine is None:
            raise SetupError("no engine was named")
        from wafervlm.runtimes.tensorrt_loading import find_place

        place = find_place(engine, bundle)
        return f"the engine runs on {place.gpu} (compute capability {place.compute_capability})"
    from wafervlm.runtimes.cuda import find_gpu
    from wafervlm.runtimes.onnx import PROVIDERS, import_onnxruntime

    if PROVIDERS["cuda"] not in import_onnxruntime().get_available_providers():
        raise SetupError("this ONNX Runtime is built without CUDA")
    return f"ONNX Runtime is built with CUDA, and {find_gpu().name} is here"


def _open_tensorrt(bundle: Bundle, engine: Engine | None, runtime_cache: Path | None) -> Runtime:
    if engine is None:
        from wafervlm.engine import build_command

        raise UsageError(
            "runtime 'tensorrt' runs an engine, and none is named; name one (--engine), or build it: "
            + build_command(Path("ENGINE"), bundle.path)
        )
    from wafervlm.runtimes.tensorrt import TensorRTRuntime

    return TensorRTRuntime(bundle, engine, runtime_cache=runtime_cache)
