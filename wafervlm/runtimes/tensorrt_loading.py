"""From an engine folder to engines and contexts on the GPU that take and give what the bundle asks for."""

from __future__ import annotations

from typing import cast

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine, build_command
from wafervlm.engine_manifest import Place
from wafervlm.errors import (
    ManifestError,
    MissingDependencyError,
    ProviderError,
    ResourceError,
)
from wafervlm.manifest import FileEntry
from wafervlm.runtimes.cuda import find_gpu
from wafervlm.runtimes.tensorrt_api import (
    ICudaEngine,
    IExecutionContext,
    IRuntimeConfig,
    RtxCudaEngine,
    Runtime,
)
from wafervlm.runtimes.tensorrt_build import is_memory
from wafervlm.runtimes.tensorrt_cache import KernelCache
from wafervlm.runtimes.tensorrt_package import INSTALL, RTX, Library, import_library


def find_place(engine: Engine, bundle: Bundle) -> Place:
    """Where ``engine`` would run. Raises MissingDependencyError and ProviderError where it cannot: without
    its package in its version, without a GPU, or on one that it was not built for."""
    manifest = engine.manifest
    words = manifest.words is not None
    again = build_command(engine.path, bundle.path, words=words)
    version = f"{INSTALL[manifest.builder]} {_distribution(manifest.builder)}=={manifest.builder_version}"
    built = f"engine {engine.path} was built by {manifest.builder} {manifest.builder_version}"
    try:
        library = import_library(manifest.builder)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{built}, and only that version can load it, but {str(error).partition(';')[0]}; install it "
            f"with: {version}"
        ) from None
    if library.version != manifest.builder_version:
        raise ProviderError(
            f"{built}, and here is {library.version}, which cannot load it; install that version: {version}, "
            f"or build it again: {build_command(engine.path, bundle.path, words=words, like=manifest)}"
        )
    capabilities = ", ".join(manifest.compute_capabilities)
    try:
        gpu = find_gpu()
    except ProviderError as error:
        raise type(error)(
            f"{built} for compute capability {capabilities}; {error}, or take --runtime onnx"
        ) from None
    if gpu.compute_capability not in manifest.compute_capabilities:
        raise ProviderError(
            f"{built} for compute capability {capabilities}, and the GPU here "
            f"({gpu.name}) has {gpu.compute_capability}; build it for this one: {again}"
        )
    return Place(gpu.name, gpu.compute_capability, gpu.driver, library.name, library.version)


def deserialise(
    loader: Runtime, library: Library, engine: Engine, bundle: Bundle, entry: FileEntry
) -> ICudaEngine:
    """The engine in the file ``entry`` of the folder, on the GPU. Raises what ``Engine.read`` raises,
    ResourceError where it does not fit and ProviderError where TensorRT refuses it."""
    library.messages.take()
    # The digest is of these very bytes, so no one can exchange the file after it was checked.
    loaded = loader.deserialize_cuda_engine(engine.read(entry))
    if loaded is not None:
        return loaded
    reason = library.reason()
    if is_memory(reason):
        raise ResourceError(
            f"the GPU's memory is too small for engine {engine.path} of "
            f"{entry.size / 1e6:.0f} MB: {reason}; close other programs on it"
        )
    raise ProviderError(
        f"{library.name} {library.version} cannot load engine {engine.path}, though the file is as it was "
        f"written: {reason}; build it again: "
        f"{build_command(engine.path, bundle.path, words=engine.manifest.words is not None)}"
    )


def make_contexts(
    loaded: ICudaEngine, library: Library, cache: KernelCache, engine: Engine, *, profiles: int = 1
) -> list[IExecutionContext]:
    """A context for each of the ``profiles``; the profile is still to be set where there are several.

    With one profile, shapes come again and again, so tensorrt_rtx compiles kernels for each and captures
    the pass; with several they grow with every token, and each would be compiled for nothing. Raises
    ResourceError where the memory does not suffice.
    """
    trt, several = library.module, profiles > 1
    # Otherwise each context would take the memory of the largest profile.
    strategy = trt.ExecutionContextAllocationStrategy
    allocation = strategy.ON_PROFILE_CHANGE if several else strategy.STATIC
    config = None
    if library.rtx is not None:
        rtx = cast(RtxCudaEngine, loaded)
        config = rtx.create_runtime_config()
        config.set_execution_context_allocation_strategy(allocation)
        _set_kernels(config, library, several)
        kept = cache.fill(config.create_runtime_cache)
        if kept is not None:
            config.set_runtime_cache(kept)
    contexts = []
    for _ in range(profiles):
        if config is None:
            context = loaded.create_execution_context(allocation)
        else:
            context = cast(RtxCudaEngine, loaded).create_execution_context(config)
        if context is None:
            raise no_memory(library, engine, f"{loaded.device_memory_size_v2 / 1e6:.0f} MB")
        contexts.append(context)
    return contexts


def no_memory(library: Library, engine: Engine, needed: str) -> ResourceError:
    """The error of a context that was not given the memory that it needs."""
    return ResourceError(
        f"engine {engine.path} needs {needed} of the GPU's memory beside its weights and did not get them: "
        f"{library.reason()}; close other programs on the GPU, or build it for less with --max-batch "
        "(images) and --max-prompt (words)"
    )


def check_contract(loaded: ICudaEngine, library: Library, engine: Engine, bundle: Bundle) -> None:
    """Refuse an engine that does not have the inputs and outputs that the bundle's task asks for. Raises
    ManifestError."""
    trt, graph, task = library.module, bundle.manifest.graph, bundle.manifest.task
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    wanted = {
        graph.input: (trt.TensorIOMode.INPUT, trt.DataType.UINT8, (task.render.height, task.render.width, 3)),
        graph.output: (trt.TensorIOMode.OUTPUT, trt.DataType.FLOAT, (len(task.labels),)),
    }
    has = {
        name: (
            loaded.get_tensor_mode(name),
            loaded.get_tensor_dtype(name),
            tuple(loaded.get_tensor_shape(name))[1:],
        )
        for name in names
    }
    shapes = loaded.get_tensor_profile_shape(graph.input, 0) if graph.input in names else [[0]]
    largest = shapes[-1][0]
    if has != wanted or largest != engine.manifest.max_batch:
        raise ManifestError(
            f"engine {engine.path} does not take and give what its bundle's task asks for "
            f"({', '.join(names)}; up to {largest} images); build it again: "
            f"{build_command(engine.path, bundle.path)}"
        )


def _set_kernels(config: IRuntimeConfig, library: Library, several: bool) -> None:
    if library.rtx is None:
        return
    kernels, graphs = library.rtx.DynamicShapesKernelSpecializationStrategy, library.rtx.CudaGraphStrategy
    # Lazily, a shape's first passes would run slower kernels, other ones than those that come after.
    config.dynamic_shapes_kernel_specialization_strategy = kernels.NONE if several else kernels.EAGER
    config.cuda_graph_strategy = graphs.DISABLED if several else graphs.WHOLE_GRAPH_CAPTURE


def _distribution(builder: str) -> str:
    return "tensorrt-rtx" if builder == RTX else "tensorrt"
