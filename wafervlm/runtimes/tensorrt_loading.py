"""From an engine folder to an engine on the GPU that takes and gives what its bundle's task asks for."""

from __future__ import annotations

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine, build_command
from wafervlm.errors import ManifestError, ProviderError, ResourceError
from wafervlm.runtimes.tensorrt_api import ICudaEngine, Runtime
from wafervlm.runtimes.tensorrt_build import is_memory
from wafervlm.runtimes.tensorrt_package import Library


def deserialise(loader: Runtime, library: Library, engine: Engine, bundle: Bundle) -> ICudaEngine:
    """The engine of the folder, on the GPU. Raises what ``Engine.read`` raises, ResourceError where it does
    not fit and ProviderError where TensorRT refuses it."""
    library.messages.take()
    # The digest is of these very bytes, so no one can exchange the file after it was checked.
    loaded = loader.deserialize_cuda_engine(engine.read())
    if loaded is not None:
        return loaded
    reason = library.reason()
    if is_memory(reason):
        raise ResourceError(
            f"the GPU's memory is too small for engine {engine.path} of "
            f"{engine.manifest.file.size / 1e6:.0f} MB: {reason}; close other programs on it"
        )
    raise ProviderError(
        f"{library.name} {library.version} cannot load engine {engine.path}, though the file is as it was "
        f"written: {reason}; build it again: {build_command(engine.path, bundle.path)}"
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
