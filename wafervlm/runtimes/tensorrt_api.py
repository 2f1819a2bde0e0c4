"""The part of TensorRT's Python API that is called here: the same names in tensorrt and tensorrt_rtx.

Neither package comes with types. Code that holds an object of theirs holds it as one of these protocols,
so mypy refuses a name that is not written down here, and a test looks up every one of them in both
packages. A protocol's name is that of the class. What only tensorrt_rtx has stands in ``RTX_ONLY``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Dims = Sequence[int]


class DataType(Protocol):
    """A member of the enumeration of that name."""

    FLOAT: DataType
    HALF: DataType
    BF16: DataType
    UINT8: DataType
    INT64: DataType

    @property
    def name(self) -> str: ...


class LayerType(Protocol):
    """Told apart by ``name``: older releases lack some members."""

    @property
    def name(self) -> str: ...


class ITensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DataType: ...
    @property
    def shape(self) -> Sequence[int]: ...


class ILayer(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> LayerType: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_input(self, index: int) -> ITensor | None: ...
    def get_output(self, index: int) -> ITensor: ...
    def set_input(self, index: int, tensor: ITensor) -> None: ...


class ICastLayer(ILayer, Protocol):
    to_type: DataType


class IDequantizeLayer(ILayer, Protocol):
    to_type: DataType


class ElementWiseOperation(Protocol):
    SUM: ElementWiseOperation


class IElementWiseLayer(ILayer, Protocol):
    op: ElementWiseOperation


class IAttention(Protocol):
    decomposable: bool


class IAttentionInputLayer(ILayer, Protocol):
    @property
    def attention(self) -> IAttention: ...


class INetworkDefinition(Protocol):
    @property
    def num_layers(self) -> int: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_layer(self, index: int) -> ILayer: ...
    def get_input(self, index: int) -> ITensor: ...
    def get_output(self, index: int) -> ITensor: ...
    def add_cast(self, input: ITensor, to_type: DataType) -> ICastLayer: ...  # noqa: A002


class ParserError(Protocol):
    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int) -> ParserError: ...
    def parse(self, model: bytes, path: str) -> bool: ...


class IOptimizationProfile(Protocol):
    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None: ...  # noqa: A002


class BuilderFlag(Protocol):
    TF32: BuilderFlag


class NetworkDefinitionCreationFlag(Protocol):
    STRONGLY_TYPED: Any


class ComputeCapability(Protocol):
    """Members are looked up by number, as in ``SM86``."""

    SM75: ComputeCapability
    SM86: ComputeCapability
    SM120: ComputeCapability


class IProgressMonitor(Protocol):
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
    def step_complete(self, phase_name: str, step: int) -> bool: ...
    def phase_finish(self, phase_name: str) -> None: ...


class IBuilderConfig(Protocol):
    progress_monitor: IProgressMonitor

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def clear_flag(self, flag: BuilderFlag) -> None: ...


class RtxBuilderConfig(IBuilderConfig, Protocol):
    """IBuilderConfig as tensorrt_rtx has it."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool: ...


class IHostMemory(Protocol):
    """Serialized bytes; gives a buffer."""

    @property
    def nbytes(self) -> int: ...


class Builder(Protocol):
    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None: ...


class TensorIOMode(Protocol):
    INPUT: TensorIOMode
    OUTPUT: TensorIOMode


class IExecutionContext(Protocol):
    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ExecutionContextAllocationStrategy(Protocol):
    STATIC: ExecutionContextAllocationStrategy
    ON_PROFILE_CHANGE: ExecutionContextAllocationStrategy


_Allocation = ExecutionContextAllocationStrategy


class CudaGraphStrategy(Protocol):
    DISABLED: CudaGraphStrategy
    WHOLE_GRAPH_CAPTURE: CudaGraphStrategy


class DynamicShapesKernelSpecializationStrategy(Protocol):
    EAGER: DynamicShapesKernelSpecializationStrategy
    NONE: DynamicShapesKernelSpecializationStrategy


class IRuntimeCache(Protocol):
    def serialize(self) -> IHostMemory: ...
    def deserialize(self, blob: bytes) -> bool: ...


class IRuntimeConfig(Protocol):
    """As tensorrt_rtx has it."""

    cuda_graph_strategy: CudaGraphStrategy
    dynamic_shapes_kernel_specialization_strategy: DynamicShapesKernelSpecializationStrategy

    def set_execution_context_allocation_strategy(self, strategy: _Allocation) -> None: ...
    def create_runtime_cache(self) -> IRuntimeCache: ...
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...


class ICudaEngine(Protocol):
    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    @property
    def device_memory_size_v2(self) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> TensorIOMode: ...
    def get_tensor_dtype(self, name: str) -> DataType: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self, strategy: _Allocation) -> IExecutionContext | None: ...


class RtxCudaEngine(Protocol):
    """ICudaEngine as tensorrt_rtx has it."""

    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext | None: ...


class Runtime(Protocol):
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class Severity(Protocol):
    """A member of ``ILogger.Severity``; lower is worse."""

    ERROR: Severity
    WARNING: Severity

    def __le__(self, other: Severity, /) -> bool: ...


_Severity = Severity


class ILogger(Protocol):
    Severity: type[_Severity]

    def log(self, severity: _Severity, msg: str) -> None: ...


_Logger = ILogger


class Package(Protocol):
    """The module tensorrt or tensorrt_rtx."""

    __version__: str
    DataType: type[DataType]
    ElementWiseOperation: type[ElementWiseOperation]
    ICastLayer: type[ICastLayer]
    IDequantizeLayer: type[IDequantizeLayer]
    IElementWiseLayer: type[IElementWiseLayer]
    IAttentionInputLayer: type[IAttentionInputLayer]
    NetworkDefinitionCreationFlag: type[NetworkDefinitionCreationFlag]
    BuilderFlag: type[BuilderFlag]
    ExecutionContextAllocationStrategy: type[ExecutionContextAllocationStrategy]
    TensorIOMode: type[TensorIOMode]
    ILogger: type[ILogger]
    IProgressMonitor: type[IProgressMonitor]

    def Builder(self, logger: _Logger) -> Builder: ...  # noqa: N802
    def OnnxParser(self, network: INetworkDefinition, logger: _Logger) -> OnnxParser: ...  # noqa: N802
    def Runtime(self, logger: _Logger) -> Runtime: ...  # noqa: N802


class RtxPackage(Package, Protocol):
    """The module tensorrt_rtx."""

    ComputeCapability: type[ComputeCapability]
    CudaGraphStrategy: type[CudaGraphStrategy]
    DynamicShapesKernelSpecializationStrategy: type[DynamicShapesKernelSpecializationStrategy]


RTX_ONLY: dict[type, str] = {
    RtxBuilderConfig: "IBuilderConfig",
    RtxCudaEngine: "ICudaEngine",
    IRuntimeConfig: "IRuntimeConfig",
    IRuntimeCache: "IRuntimeCache",
    ComputeCapability: "ComputeCapability",
    CudaGraphStrategy: "CudaGraphStrategy",
    DynamicShapesKernelSpecializationStrategy: "DynamicShapesKernelSpecializationStrategy",
}
"""Protocols of what only tensorrt_rtx has, and the class in which it has it."""
