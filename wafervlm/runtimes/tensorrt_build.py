"""Building an engine from a bundle, ahead of time with tensorrt_rtx, or for the GPU that is here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from wafervlm.bundle import Bundle
from wafervlm.engine_manifest import ENGINE_PRECISIONS
from wafervlm.errors import ManifestError, ProviderError, ResourceError, SetupError, UsageError
from wafervlm.manifest import Manifest
from wafervlm.runtimes.host_memory import map_large_blocks, release_mapped
from wafervlm.runtimes.tensorrt_api import (
    DataType,
    IBuilderConfig,
    IHostMemory,
    INetworkDefinition,
    IProgressMonitor,
    OnnxParser,
    RtxBuilderConfig,
)
from wafervlm.runtimes.tensorrt_package import Library
from wafervlm.runtimes.tensorrt_precision import set_precision
from wafervlm.runtimes.tensorrt_target import Target

FP16_ROOM = 3e4
"""FP16 ends at 65,504; wafers that were not calibrated on may reach further than those that were."""

TOLERANCES = {"bf16": 0.5, "fp16": 0.06, "fp32": 0.01}
"""How far an engine's label log-probabilities may lie from the reference: several times what the rounding
alone gave on nano, computed on a CPU (bf16 0.16, fp16 0.011), mostly of labels next to impossible."""

Report = Callable[[str, int, int], None]
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""What one optimization profile allows: for each input its smallest, its most usual and its largest shape."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one graph of a bundle becomes an engine: its ``file``, the ``inputs`` and ``outputs`` that it must
    have, with their types, and its optimization ``profiles``, given the network that was read. ``size`` says
    in words how much it is built for, and ``lower`` is the option that makes that less."""

    file: str
    inputs: Callable[[INetworkDefinition], Mapping[str, DataType]]
    outputs: Callable[[INetworkDefinition], Mapping[str, DataType]]
    profiles: Callable[[INetworkDefinition], Sequence[Shapes]]
    size: str
    lower: str


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
    graph, types = bundle.manifest.graph, target.library.module.DataType

    def profiles(network: INetworkDefinition) -> list[Shapes]:
        # One for all batch sizes, at its best for one image: a second one would enlarge the engine.
        sides = tuple(network.get_input(0).shape)[1:]
        return [{graph.input: ((1, *sides), (1, *sides), (max_batch, *sides))}]

    recipe = Recipe(
        file=graph.file,
        inputs=lambda _: {graph.input: types.UINT8},
        outputs=lambda _: {graph.output: types.FLOAT},
        profiles=profiles,
        size=f"{max_batch} images",
        lower="--max-batch",
    )
    return build_graph(bundle, target, recipe, precision=precision, report=report)


def build_graph(
    bundle: Bundle, target: Target, recipe: Recipe, *, precision: str, report: Report | None = None
) -> IHostMemory:
    """Build the engine of one graph of ``bundle``; ``report`` and errors are those of ``build_engine``."""
    check_buildable(bundle.manifest, precision, target.compute_capabilities)
    library = target.library
    trt = library.module
    library.messages.take()
    map_large_blocks()
    builder = trt.Builder(library.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # The parser holds the weights that it read until the engine is built.
    parser = trt.OnnxParser(network, library.logger)
    _parse(parser, library, bundle, recipe.file)
    _check_contract(network, recipe, bundle.path / recipe.file)
    set_precision(trt, network, precision)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # what stays in float32 is meant to be exact
    _set_capabilities(library, config, target)
    for shapes in recipe.profiles(network):
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            profile.set_shape(name, least, best, most)
        config.add_optimization_profile(profile)
    with _progress(library, config, report, bundle.path) as stopped:
        engine = builder.build_serialized_network(network, config)
        if stopped():
            raise KeyboardInterrupt
    if engine is None:
        raise _build_error(library, bundle.path / recipe.file, recipe)
    return engine


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


def _parse(parser: OnnxParser, library: Library, bundle: Bundle, file: str) -> None:
    path = bundle.path / file
    # The digest is of these very bytes; only weights that lie beside the graph are read from its folder.
    if parser.parse(bundle.read(file), str(path.resolve())):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    nodes = sorted(
        {f"{error.node_operator()} ({error.node_name()})" for error in errors if error.node_operator()}
    )
    what = f"the operator {nodes[0]}" if nodes else "the graph"
    reason = " ".join(errors[0].desc().split())[:300] if errors else library.reason()
    raise ProviderError(
        f"{library.name} {library.version} cannot read {what} of {path}: {reason}; "
        f"{_remedy(library, bundle.manifest.graph.opset)}"
    )


def _remedy(library: Library, opset: int) -> str:
    """What helps where an operator of a graph of this ``opset`` is not read."""
    newer = f"take a newer {library.name}"
    if opset < 23:
        return newer
    return (
        f"{newer} (Attention, RotaryEmbedding and RMSNormalization: 10.15), or export the bundle again "
        "without them: wafervlm export CHECKPOINT -o BUNDLE --opset 21"
    )


def _check_contract(network: INetworkDefinition, recipe: Recipe, where: Path) -> None:
    inputs = {t.name: t.dtype for t in map(network.get_input, range(network.num_inputs))}
    outputs = {t.name: t.dtype for t in map(network.get_output, range(network.num_outputs))}
    taken, given = recipe.inputs(network), recipe.outputs(network)
    if (inputs, outputs) != (taken, given):
        has, wants = (
            ", ".join(f"{name} ({dtype.name.lower()})" for name, dtype in [*ins.items(), *outs.items()])
            for ins, outs in ((inputs, outputs), (taken, given))
        )
        raise ManifestError(
            f"{where} has the inputs and outputs {has}, and its manifest asks for {wants}; export the bundle "
            "again"
        )


def _set_capabilities(library: Library, config: IBuilderConfig, target: Target) -> None:
    if library.rtx is None:
        return
    rtx = cast(RtxBuilderConfig, config)
    rtx.num_compute_capabilities = len(target.compute_capabilities)
    for index, capability in enumerate(target.compute_capabilities):
        member = getattr(library.rtx.ComputeCapability, "SM" + capability.replace(".", ""))
        rtx.set_compute_capability(member, index)


def _build_error(library: Library, where: Path, recipe: Recipe) -> SetupError:
    reason = library.reason()
    if is_memory(reason):
        return ResourceError(
            f"not enough memory to build the engine of {where} for {recipe.size}: {reason}; lower "
            f"{recipe.lower}, or close other programs"
        )
    return ProviderError(f"{library.name} {library.version} could not build the engine of {where}: {reason}")


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
