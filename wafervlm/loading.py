"""Loading: from a bundle's folder, and maybe an engine's, to a model that is ready."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from wafervlm.bundle import Bundle, open_bundle
from wafervlm.engine import Engine, open_engine
from wafervlm.errors import WaferVLMWarning
from wafervlm.golden import read_golden
from wafervlm.model import WaferVLM
from wafervlm.runtimes import choose_runtime, open_runtime
from wafervlm.runtimes.deferred import DeferredRuntime

log = logging.getLogger(__name__)


def load(
    bundle: str | Path | None = None,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    engine: str | Path | None = None,
    runtime_cache: str | Path | None = None,
) -> WaferVLM:
    """Open the bundle folder ``bundle`` (the embedded nano one when None) and make it ready to answer.

    ``runtime`` is "onnx", "onnx-cuda", "openvino", "tensorrt" or "auto"; None is "tensorrt" where
    ``engine``, a folder that ``wafervlm engine`` built, is given, else "onnx". "auto" takes the fastest that
    can run here, "openvino" excepted, and logs which and why; where that is not ``engine``, though one was
    named, a WaferVLMWarning says so. ``runtime_cache`` is a folder in which tensorrt_rtx keeps compiled
    kernels. ``threads`` is how many threads one prediction uses on the CPU, one per core when None.

    Every file's digest is compared before anything parses it; nothing is fetched, and nothing is written
    outside ``runtime_cache``. Raises IntegrityError where bundle or engine is not as it was written,
    VerificationError for an engine that has not reproduced the golden maps here, LockError where the task is
    not as it was, ProviderError and MissingDependencyError for what this machine lacks, ResourceError where
    memory runs out, UsageError for an argument that cannot be meant.
    """
    opened = open_bundle(bundle)
    compiled = None if engine is None else open_engine(engine, opened)
    name, why = (runtime or ("onnx" if compiled is None else "tensorrt")), ""
    if name == "auto":
        name, why = choose_runtime(opened, compiled)
        log.info("runtime auto is %s: %s", name, why)
        if compiled is not None and name != "tensorrt":
            text = f"engine {compiled.path} is not used: runtime auto is {name} ({why})"
            warnings.warn(text, WaferVLMWarning, stacklevel=2)
            compiled = None
    check = name == "tensorrt" and compiled is not None and _needs_verification(compiled, opened)
    cache = Path(runtime_cache) if runtime_cache is not None and (name == "tensorrt" or not why) else None
    ready = open_runtime(name, opened, device=device, threads=threads, engine=compiled, runtime_cache=cache)
    device = "cuda" if name == "onnx-cuda" else device
    # What computes may differ from one processor to the next, and is said.
    why = "; ".join(filter(None, (why, getattr(ready, "about", ""))))
    text = f"{name} ({why})" if why else name
    model = WaferVLM(opened, ready, device=device, threads=threads, runtime_name=text)
    if check and compiled is not None:
        _accept(model, compiled)
    return model


def load_for_words(
    bundle: str | Path | None = None, *, runtime: str = "onnx", threads: int | None = None
) -> WaferVLM:
    """Open ``bundle`` as ``load`` does on ``runtime``, "onnx" or "onnx-cuda", but its classification only at
    the first prediction: the graphs that generate text have weights of their own in memory."""
    opened = open_bundle(bundle)
    ready = DeferredRuntime(lambda: open_runtime(runtime, opened, threads=threads))
    device = "cuda" if runtime == "onnx-cuda" else "cpu"
    return WaferVLM(opened, ready, device=device, threads=threads, runtime_name=runtime)


def _needs_verification(engine: Engine, bundle: Bundle) -> bool:
    from wafervlm.verification import needs_verification

    return needs_verification(engine, bundle)


def _accept(model: WaferVLM, engine: Engine) -> None:
    """Run the golden maps before the first answer; a model that fails them is closed."""
    from wafervlm.runtimes.tensorrt import find_place
    from wafervlm.verification import accept

    try:
        accept(model, read_golden(model._bundle), engine, find_place(engine, model._bundle))
    except BaseException:
        model.close()
        raise
