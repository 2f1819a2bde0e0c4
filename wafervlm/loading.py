"""Loading: from a bundle's folder, and maybe an engine's, to a model that is ready."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from wafervlm.bundle import Bundle, open_bundle
from wafervlm.cores import check_threads
from wafervlm.engine import Engine, open_engine
from wafervlm.errors import UsageError, WaferVLMWarning
from wafervlm.golden import check_deployed, read_golden
from wafervlm.model import WaferVLM
from wafervlm.runtimes import Runtime, choose_runtime, open_runtime
from wafervlm.runtimes.deferred import DeferredRuntime
from wafervlm.words.opening import choose_words_runtime, open_speaker
from wafervlm.words.stream import Speaker

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
    can run here, "openvino" only where there is no ONNX Runtime, and logs which and why; where that is not
    ``engine``, though one was named, a WaferVLMWarning says so. ``runtime_cache`` is a folder in which
    tensorrt_rtx keeps compiled kernels. ``threads`` is how many threads one prediction uses on the CPU: one
    per core when None, and no more than there are cores that this process may use.

    Every file's digest is compared before anything parses it; nothing is fetched, and nothing is written
    outside ``runtime_cache``. Raises IntegrityError where bundle or engine is not as it was written,
    VerificationError for an engine that has not reproduced the golden maps here, LockError where the task is
    not as it was, ProviderError and MissingDependencyError for what this machine lacks, ResourceError where
    memory runs out, UsageError for an argument that cannot be meant.
    """
    opened, named = _opened(bundle, engine, runtime_cache, threads)
    name, why = _chosen(runtime, opened, named, choose_runtime)
    compiled = named if name == "tensorrt" or not why else None
    cache = Path(runtime_cache) if runtime_cache is not None and (name == "tensorrt" or not why) else None
    ready = _open(opened, name, device, threads, compiled, cache)
    device = "cuda" if name == "onnx-cuda" else device

    def speaker() -> Speaker:
        # Where "auto" chose, an engine may classify and have no words.
        spoken, reason = _chosen("auto", opened, named, choose_words_runtime) if why else (name, "")
        return _speaker(opened, spoken, reason, device, threads, named, cache)

    # What computes may differ from one processor to the next, and is said.
    about = "; ".join(filter(None, (why, getattr(ready, "about", ""))))
    text = f"{name} ({about})" if about else name
    return WaferVLM(opened, ready, speaker=speaker, runtime_name=text)


def load_for_words(
    bundle: str | Path | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    engine: str | Path | None = None,
    runtime_cache: str | Path | None = None,
) -> WaferVLM:
    """Open ``bundle`` as ``load`` does, but its words at once and its classification only at the first
    prediction: the graphs of each have weights of their own in memory.

    ``runtime`` is "onnx", "onnx-cuda", "tensorrt" or "auto"; None is "tensorrt" where ``engine`` is given,
    else "onnx". Raises what ``load`` raises, and UsageError where bundle or engine have no words.
    """
    opened, named = _opened(bundle, engine, runtime_cache, threads)
    name, why = _chosen(runtime, opened, named, choose_words_runtime)
    if name != "tensorrt" and not why and (named is not None or runtime_cache is not None):
        raise UsageError(
            f"runtime {name!r} runs no engine and keeps no runtime cache; leave them out, or take runtime "
            "'tensorrt'"
        )
    compiled, folder = (named, runtime_cache) if name == "tensorrt" else (None, None)
    cache = None if folder is None else Path(folder)
    speaker = _speaker(opened, name, why, "cpu", threads, compiled, cache)
    most = compiled.manifest.max_batch if compiled else None
    ready = DeferredRuntime(lambda: _open(opened, name, "cpu", threads, compiled, cache), most)
    model = WaferVLM(opened, ready, speaker=lambda: speaker, runtime_name=speaker.runtime)
    model._words()  # held from now on, so that closing the model closes it
    return model


def _opened(
    bundle: str | Path | None, engine: str | Path | None, cache: str | Path | None, threads: int | None
) -> tuple[Bundle, Engine | None]:
    """Bundle and engine, once the arguments are what they must be."""
    for what, value in (("bundle", bundle), ("engine", engine), ("runtime_cache", cache)):
        if not isinstance(value, (str, Path, type(None))):
            raise UsageError(f"{what} is {value!r}; it must be the path of a folder, as text or a Path")
    check_threads(threads)
    opened = open_bundle(bundle)
    check_deployed(opened)
    return opened, None if engine is None else open_engine(engine, opened)


def _chosen(
    runtime: str | None,
    bundle: Bundle,
    engine: Engine | None,
    choose: Callable[[Bundle, Engine | None], tuple[str, str]],
) -> tuple[str, str]:
    """The runtime, and why where it was "auto"; that an engine is not used, though named, is a warning."""
    if runtime != "auto":
        return runtime or ("onnx" if engine is None else "tensorrt"), ""
    name, why = choose(bundle, engine)
    log.info("runtime auto is %s: %s", name, why)
    if engine is not None and name != "tensorrt":
        text = f"engine {engine.path} is not used: runtime auto is {name} ({why})"
        warnings.warn(text, WaferVLMWarning, stacklevel=3)
    return name, why


def _open(
    bundle: Bundle,
    name: str,
    device: str,
    threads: int | None,
    engine: Engine | None,
    cache: Path | None,
) -> Runtime:
    """The runtime that classifies; an engine that the golden maps do not come out of is closed."""
    check = name == "tensorrt" and engine is not None and _needs_verification(engine, bundle)
    ready = open_runtime(name, bundle, device=device, threads=threads, engine=engine, runtime_cache=cache)
    if check and engine is not None:
        _accept(bundle, ready, engine)
    return ready


def _speaker(
    bundle: Bundle,
    name: str,
    why: str,
    device: str,
    threads: int | None,
    engine: Engine | None,
    cache: Path | None,
) -> Speaker:
    speaker = open_speaker(bundle, name, device=device, threads=threads, engine=engine, runtime_cache=cache)
    if why:
        speaker.runtime = f"{speaker.runtime} ({why})"
    return speaker


def _needs_verification(engine: Engine, bundle: Bundle) -> bool:
    from wafervlm.verification import needs_verification

    return needs_verification(engine, bundle)


def _accept(bundle: Bundle, runtime: Runtime, engine: Engine) -> None:
    """Run the golden maps before the first answer; a runtime that fails them is closed."""
    from wafervlm.runtimes.tensorrt_loading import find_place
    from wafervlm.verification import accept

    try:
        accept(WaferVLM(bundle, runtime), read_golden(bundle), engine, find_place(engine, bundle))
    except BaseException:
        runtime.close()
        raise
