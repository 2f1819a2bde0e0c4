"""Building an engine from a bundle, ahead of time with tensorrt_rtx, or for the GPU that is here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from wafervlm.bundle import Bundle
from wafervlm.engine_manifest import ENGINE_PRECISIONS
from wafervlm.errors import (
    ManifestError,
    MissingDependencyError,
    ProviderError,
    ResourceError,
    SetupError,
    UsageError,
)
from wafervlm.manifest import Manifest
from wafervlm.runtimes.cuda import Gpu, find_gpu
from wafervlm.runtimes.host_memory import map_large_blocks, release_mapped
from wafervlm.runtimes.tensorrt_api import (
    Builder,
    IBuilderConfig,
    IHostMemory,
    INetworkDefinition,
    IProgressMonitor,
    OnnxParser,
    RtxBuilderConfig,
)
from wafervlm.runtimes.tensorrt_package import RTX, TENSORRT, Library, import_library, installed
from wafervlm.runtimes.tensorrt_precision import set_precision

FP16_ROOM = 3e4
"""FP16 ends at 65,504; wafers that were not calibrated on may reach further than those that were."""

TOLERANCES = {"bf16": 0.5, "fp16": 0.06, "fp32": 0.01}
"""How far an engine's label log-probabilities may lie from the reference: several times what the rounding
alone gave on nano, computed on a CPU (bf16 0.16, fp16 0.011), mostly of labels next to impossible."""

Report = Callable[[str, int, int], None]


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


def check_buildable(manifest: Manifest, precision: str, capabilities: tuple[str, ...]) -> None:
    """Refuse what no engine can be built from or computed in. Raises UsageError."""
    graph = manifest.graph
    if precision not in ENGINE_PRECISIONS:
        raise UsageError(f"there is no precision {precision!r}; known are {', '.join(ENGINE_PRECISIONS)}")
    if graph.vision != "float32":
        raise UsageError(
            f"the vision tower of bundle {manifest.name} computes in 8-bit integers "
            "(DynamicQuantizeLinear), which TensorRT does not read; export the bundle again with: wafervlm "
            "export CHECKPOINT -o BUNDLE --vision float32"
        )
    if "7.5" in capabilities and graph.precision != "float32":
        raise UsageError(
            f"bundle {manifest.name} has {graph.precision} weights, and TensorRT has no kernels for them on "
            "compute capability 7.5; leave 7.5 out, or export the full-precision checkpoint: wafervlm "
            "export MERGED -o BUNDLE"
        )
    if "7.5" in capabilities and precision != "fp32":
        what = "compute capability 7.5 has no bf16, in which the vision tower computes with fp16 too"
        raise UsageError(f"{what}; leave 7.5 out, or take --precision fp32")
    if precision == "fp16":
        _check_fp16(manifest)


def build_engine(
    bundle: Bundle, target: Target, *, precision: str, max_batch: int, report: Report | None = None
) -> IHostMemory:
    """Build the engine of ``bundle`` for 1 to ``max_batch`` images and return its bytes as a buffer.

    ``report`` is called with a phase, its step and its number of steps. Raises UsageError for what cannot
    be built, ProviderError where TensorRT refuses the graph, ResourceError where memory runs out.
    """
    check_buildable(bundle.manifest, precision, target.compute_capabilities)
    library = target.library
    trt = library.module
    library.messages.take()
    map_large_blocks()
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # The parser holds the weights that it read until the engine is built.
    parser = trt.OnnxParser(network, library.logger)
    _parse(parser, library, bundle)
    _check_contract(network, library, bundle)
    set_precision(trt, network, precision)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # what stays in float32 is meant to be exact
    _set_capabilities(library, config, target)
    _add_profile(builder, config, network, max_batch)
    with _progress(library, config, report, bundle.path) as stopped:
        engine = builder.build_serialized_network(network, config)
        if stopped():
            raise KeyboardInterrupt
    if engine is None:
        raise _build_error(library, bundle, max_batch)
    return engine


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


def known_capabilities(library: Library) -> tuple[str, ...]:
    """The compute capabilities that this tensorrt_rtx builds for, as in "8.6"."""
    names = dir(library.rtx.ComputeCapability) if library.rtx else []
    digits = sorted(int(name[2:]) for name in names if name.startswith("SM") and name[2:].isdigit())
    return tuple(f"{number // 10}.{number % 10}" for number in digits)


def _check_capabilities(library: Library, capabilities: tuple[str, ...]) -> None:
    known = known_capabilities(library)
    for capability in capabilities:
        if capability not in known:
            raise UsageError(
                f"{library.name} {library.version} does not build for compute capability {capability!r}, "
                f"only for {', '.join(known)}; for other GPUs (8.7 Orin, 9.0 H100) build on them with "
                "tensorrt: wafervlm engine --bundle BUNDLE --target tensorrt -o ENGINE"
            )


def _check_fp16(manifest: Manifest) -> None:
    found = [
        record["parity"]["absolute_maximum"]
        for record in manifest.provenance
        if record.get("stage") == "calibrate" and "absolute_maximum" in record.get("parity", {})
    ]
    instead = "take --precision bf16, whose range is float32's"
    if not found:
        raise UsageError(
            f"bundle {manifest.name} holds no record of how large its activations grow (calibrate writes "
            f"it), and FP16 ends at 65,504; {instead}"
        )
    if not max(found) < FP16_ROOM:
        raise UsageError(
            f"activations of bundle {manifest.name} reached {max(found):.3g} in calibration, which leaves "
            f"FP16 too little room (below {FP16_ROOM:.0f} it is allowed); {instead}"
        )


def _parse(parser: OnnxParser, library: Library, bundle: Bundle) -> None:
    path = bundle.path / bundle.manifest.graph.file
    # The digest is of these very bytes; only weights that lie beside the graph are read from its folder.
    if parser.parse(bundle.read(bundle.manifest.graph.file), str(path.resolve())):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = sorted(
        {f"{error.node_operator()} ({error.node_name()})" for error in errors if error.node_operator()}
    )
    what = f"the operator {nodes[0]}" if nodes else "the graph"
    reason = " ".join(errors[0].desc().split())[:300] if errors else library.reason()
    raise ProviderError(
        f"{library.name} {library.version} cannot read {what} of {path}: {reason}; take a newer "
        f"{library.name}, which the newest operators need (Attention and RotaryEmbedding: 10.15)"
    )


def _check_contract(network: INetworkDefinition, library: Library, bundle: Bundle) -> None:
    graph, types = bundle.manifest.graph, library.module.DataType
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    has = [(t.name, t.dtype) for t in (*inputs, *outputs)]
    if has != [(graph.input, types.UINT8), (graph.output, types.FLOAT)]:
        raise ManifestError(
            f"{bundle.path / graph.file} has inputs and outputs {[(n, d.name) for n, d in has]}, and its "
            f"manifest names {graph.input!r} (uint8) and {graph.output!r} (float32); export the bundle again"
        )


def _set_capabilities(library: Library, config: IBuilderConfig, target: Target) -> None:
    if library.rtx is None:
        return
    rtx = cast(RtxBuilderConfig, config)
    rtx.num_compute_capabilities = len(target.compute_capabilities)
    for index, capability in enumerate(target.compute_capabilities):
        member = getattr(library.rtx.ComputeCapability, "SM" + capability.replace(".", ""))
        rtx.set_compute_capability(member, index)


def _add_profile(
    builder: Builder, config: IBuilderConfig, network: INetworkDefinition, max_batch: int
) -> None:
    """One profile for all batch sizes, at its best for one image: a second one would enlarge the engine."""
    image = network.get_input(0)
    sides = tuple(image.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, (1, *sides), (1, *sides), (max_batch, *sides))
    config.add_optimization_profile(profile)


def _build_error(library: Library, bundle: Bundle, max_batch: int) -> SetupError:
    reason = library.reason()
    if is_memory(reason):
        return ResourceError(
            f"not enough memory to build the engine of {bundle.path} for {max_batch} images: {reason}; lower "
            "--max-batch, or close other programs"
        )
    return ProviderError(
        f"{library.name} {library.version} could not build the engine of {bundle.path}: {reason}"
    )


def is_memory(text: str) -> bool:
    """Whether TensorRT's message says that memory ran out."""
    signs = ("out of memory", "outofmemory", "cudaerrormemoryallocation", "bad_alloc", "insufficient memory")
    return any(sign in text.lower() for sign in signs)


@contextmanager
def _progress(
    library: Library, config: IBuilderConfig, report: Report | None, bundle: Path
) -> Iterator[Callable[[], bool]]:
    """Report the build's phases; yield whether it was stopped by Ctrl-C, which ends a build between steps."""
    interrupted = threading.Event()
    steps: dict[str, int] = {}
    base: Any = library.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            steps.pop(phase_name, None)
            # The parser maps the weights' file, and what was read of it would stay beside the copies.
            with suppress(OSError):
                release_mapped(bundle)

        def _tell(self, phase: str, step: int) -> None:
            # An exception must not pass through TensorRT's own frames.
            try:
                if report is not None:
                    report(phase, step, steps.get(phase, 0))
            except KeyboardInterrupt:
                interrupted.set()

    monitor = Monitor()
    config.progress_monitor = cast(IProgressMonitor, monitor)
    yield interrupted.is_set
