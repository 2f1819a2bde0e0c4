"""Ray, for scoring: started and ended, and its errors in words of ours."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from wafervlm.archive_files import INSTALL
from wafervlm.errors import MissingDependencyError, ProviderError, ResourceError, WaferVLMError
from wafervlm.runtimes.cuda import driver_gpus
from wafervlm.score_config import ScoreConfig

# Ray reports its use to its makers unless told not to, and tells people what is for its own developers.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@contextlib.contextmanager
def running_ray(config: ScoreConfig) -> Iterator[Any]:
    """Ray, started as ``config`` says where this process has none yet, and shut down again on leaving. What
    goes wrong inside is raised as an error of ours. Raises MissingDependencyError, ProviderError and
    ResourceError."""
    ray = _import_ray()
    started = not ray.is_initialized()
    try:
        if started:
            _start(ray, config)
        yield ray
    except Exception as error:
        known = cause_of(error, ray)
        if known is error:
            raise
        raise known from error
    finally:
        if started:
            ray.shutdown()


def is_running() -> bool:
    """Whether this process drives a Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _import_ray() -> Any:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            f"scoring an archive needs Ray Data ({error}); install it with: {INSTALL}"
        ) from None
    # What Ray logs of an error, with the traces of three processes, is told in one sentence.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


def _start(ray: Any, config: ScoreConfig) -> None:
    if config.on_gpu and config.address is None and driver_gpus() == 0:
        raise no_gpu(config)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    options |= {"include_dashboard": False} if config.address is None else {"address": config.address}
    try:
        with _hushed():
            ray.init(**options)
    except Exception as error:  # its own, grpc's, redis's and the system's
        raise _of_system(error) or ProviderError(
            f"Ray could not be started here: {_first(error)}; look at the room and the limits of its folder "
            "for temporary files ($RAY_TMPDIR, else /tmp/ray) and of memory"
        ) from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Have nothing printed on stderr in the block: there Ray's C++ says of which level its messages are."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def no_gpu(config: ScoreConfig) -> ProviderError:
    """The error of an archive that is to be scored on GPUs where there is none."""
    what = "device is cuda" if config.device == "cuda" else f"runtime is {config.name}"
    return ProviderError(
        f"{what} and there is no GPU here; start it where there is one, or take onnx on the cpu"
    )


def cause_of(error: BaseException, ray: Any) -> BaseException:
    """The error of ours that Ray has wrapped, or one that says what to do about Ray's own."""
    for link in _links(error):
        # Ray's wrappers are of the classes of what they wrap too.
        if isinstance(link, WaferVLMError) and not isinstance(link, ray.exceptions.RayError):
            return link
    for link in _links(error):
        if isinstance(link, ray.exceptions.RayError) and (known := _of_system(link)):
            return known
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return ResourceError("memory ran out while scoring; lower actors or part_maps and run it again")
    if isinstance(error, ray.exceptions.RayError):
        return ProviderError(
            f"Ray could not go on: {_first(error)}; run the same command again, parts that are complete stay"
        )
    return error


def _links(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, what it wraps, and what came before it."""
    while error is not None:
        cause = getattr(error, "cause", None)
        if isinstance(cause, BaseException):
            yield cause
        yield error
        error = error.__cause__ or (cause if isinstance(cause, BaseException) else None) or error.__context__


def _of_system(error: BaseException) -> ResourceError | None:
    """A full disk, or a limit on the size of files, in a sentence; Ray's own errors have it in their text."""
    text = str(error)
    for sign, what in (
        ("No space left on device", "the disk is full; free space"),
        ("File too large", "a file may not grow as large as needed; raise the limit (ulimit -f)"),
    ):
        if sign in text:
            return ResourceError(f"{what}, and run the same command again: parts that are complete stay")
    return None


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
