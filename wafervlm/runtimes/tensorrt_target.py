"""What an engine is to be built with, and for which GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from wafervlm.errors import MissingDependencyError, SetupError, UsageError
from wafervlm.runtimes.cuda import Gpu, find_gpu
from wafervlm.runtimes.tensorrt_package import RTX, TENSORRT, Library, import_library, installed


@dataclass(frozen=True, slots=True)
class Target:
    """What an engine is to be built with and for: ``gpu`` is None where it is built ahead of time, and
    ``reason`` says why this package was taken."""

    library: Library
    compute_capabilities: tuple[str, ...]
    gpu: Gpu | None
    reason: str


def find_target(text: str) -> Target:
    """The target that ``text`` names: ``auto``, ``rtx`` or ``tensorrt`` for the GPU that is here, or as in
    ``rtx:8.6,8.9`` for others. Raises UsageError, MissingDependencyError and ProviderError."""
    name, _, listed = text.partition(":")
    if name not in ("auto", "rtx", "tensorrt") or (":" in text and (name != "rtx" or not listed)):
        raise UsageError(
            f"there is no target {text!r}; known are auto, rtx and tensorrt for the GPU that is here, and "
            "as in rtx:8.6,8.9,12.0 for others"
        )
    if listed:
        library = import_library(RTX)
        capabilities = tuple(dict.fromkeys(part.strip() for part in listed.split(",")))
        _check_capabilities(library, capabilities)
        return Target(library, capabilities, None, "ahead of time, which only tensorrt_rtx does")
    gpu = _gpu_to_build_for()
    library, reason = _library_for(name, gpu)
    return Target(library, (gpu.compute_capability,), gpu, reason)


def known_capabilities(library: Library) -> tuple[str, ...]:
    """The compute capabilities that this tensorrt_rtx builds for, as in "8.6"."""
    names = dir(library.rtx.ComputeCapability) if library.rtx else []
    digits = sorted(int(name[2:]) for name in names if name.startswith("SM") and name[2:].isdigit())
    return tuple(f"{number // 10}.{number % 10}" for number in digits)


def _gpu_to_build_for() -> Gpu:
    try:
        return find_gpu()
    except SetupError as error:
        raise type(error)(
            f"{error}; without a GPU an engine is built ahead of time, as in: wafervlm engine "
            "--bundle BUNDLE --target rtx:8.6,8.9,12.0 -o ENGINE"
        ) from None


def _library_for(name: str, gpu: Gpu) -> tuple[Library, str]:
    wanted = {"rtx": (RTX,), "tensorrt": (TENSORRT,), "auto": installed()}[name]
    if not wanted:
        raise MissingDependencyError(
            "neither tensorrt nor tensorrt_rtx is installed; install one: pip install "
            "'wafervlm[tensorrt-rtx]' for a GeForce or RTX GPU, 'wafervlm[tensorrt]' for any other"
        )
    if name != "auto":
        library = import_library(wanted[0])
        if library.rtx:
            _check_capabilities(library, (gpu.compute_capability,))
        return library, "as --target says"
    if TENSORRT in wanted:
        other = ", and times its kernels on it, which tensorrt_rtx does not" if RTX in wanted else ""
        return import_library(TENSORRT), f"tensorrt is installed and builds for any GPU{other}"
    library = import_library(RTX)
    _check_capabilities(library, (gpu.compute_capability,))
    return library, "tensorrt_rtx is installed and tensorrt is not"


def _check_capabilities(library: Library, capabilities: tuple[str, ...]) -> None:
    known = known_capabilities(library)
    for capability in capabilities:
        if capability not in known:
            raise UsageError(
                f"{library.name} {library.version} does not build for compute capability {capability!r}, "
                f"only for {', '.join(known)}; for other GPUs (8.7 Orin, 9.0 H100) build on them with "
                "tensorrt: wafervlm engine --bundle BUNDLE --target tensorrt -o ENGINE"
            )
