"""What becomes of exported graphs in TensorRT: the types of their products, and engines that are built.

The tests marked ``tensorrt`` need tensorrt_rtx, no GPU: they parse, cast and build for real, and execute
nothing. The last one computes on the CPU what the rounding alone does to the scores.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from export.builder import OPSET
from export.stage import build_model
from export.weights import Weights
from tests.wafervlm.toy import make_wafers
from wafervlm.bundle import Bundle, FileEntry, Graph, Manifest
from wafervlm.errors import ProviderError
from wafervlm.render import render
from wafervlm.runtimes import tensorrt_build
from wafervlm.runtimes.tensorrt_package import RTX, Library, import_library
from wafervlm.runtimes.tensorrt_precision import product_types, set_precision
from wafervlm.runtimes.tensorrt_target import find_target
from wafervlm.task import Task

HEAD = "head/labels/MatMul"


@pytest.fixture(scope="module")
def rtx() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install tensorrt-rtx")
    return import_library(RTX)


@pytest.fixture(scope="module")
def graph(rough_int4: Path, family_task: Task, opset: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of each family's tiny model, with 4-bit weights, in each operator set."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    ir.save(build_model(Weights(rough_int4), family_task, opset=opset), path)
    return path


def bundle_of(graph: Path, task: Task) -> Bundle:
    """Of which only the graph and the manifest are read."""
    calibrate = {"stage": "calibrate", "parity": {"absolute_maximum": 50.0}}
    about = Graph(precision="int4", group_size=32)
    data = graph.read_bytes()
    files = (FileEntry(graph.name, hashlib.sha256(data).hexdigest(), len(data)),)
    manifest = Manifest("tiny", "2026", task, about, 1.0, 1e-3, provenance=(calibrate,), files=files)
    return Bundle(graph.parent, manifest, "0" * 64)


def parsed(rtx: Library, graph: Path) -> tuple[Any, ...]:
    trt: Any = rtx.module
    builder = trt.Builder(rtx.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, rtx.logger)
    assert parser.parse_from_file(str(graph)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    return network, parser, builder


def layers(network: Any) -> Iterator[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


@pytest.mark.tensorrt
def test_a_graph_as_parsed_is_float32_throughout(rtx: Library, graph: Path) -> None:
    """Else the tests below would find what was there before."""
    network, *_ = parsed(rtx, graph)
    types = product_types(network)
    assert len(types) > 10
    assert {name for each in types.values() for name in each} == {"FLOAT"}


@pytest.mark.tensorrt
@pytest.mark.parametrize(("precision", "text"), [("bf16", "BF16"), ("fp16", "HALF")])
def test_every_product_but_the_head_is_narrow(rtx: Library, graph: Path, precision: str, text: str) -> None:
    network, *_ = parsed(rtx, graph)
    set_precision(rtx.module, network, precision)
    types = product_types(network)
    assert set(types.pop(HEAD)) == {"FLOAT"}
    for name, found in types.items():
        assert set(found) == {text if name.startswith("text/") else "BF16"}, name
    assert {name.partition("/")[0] for name in types} == {"text", "vision"}


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_needs_range_stays_in_float32(rtx: Library, graph: Path, opset: int, precision: str) -> None:
    network, *_ = parsed(rtx, graph)
    set_precision(rtx.module, network, precision)
    exact = {"REDUCE", "UNARY", "NORMALIZATION", "SOFTMAX", "ROTARY_EMBEDDING", "ACTIVATION"}
    seen = set()
    for layer in layers(network):
        kind = layer.type.name
        if kind in exact and layer.get_input(0).dtype.name not in ("INT32", "INT64", "BOOL"):
            seen.add(kind)
            assert layer.get_output(0).dtype.name == "FLOAT", layer.name
    assert {"REDUCE", "UNARY", "SOFTMAX", "ACTIVATION"} <= seen
    assert ("ROTARY_EMBEDDING" in seen) == (opset == OPSET)
    residual = [layer for layer in layers(network) if re.fullmatch(r"text/layer\.\d+/Add(\.\d)?", layer.name)]
    assert len(residual) >= 4
    assert {layer.get_output(0).dtype.name for layer in residual} == {"FLOAT"}
    assert network.get_output(0).dtype.name == "FLOAT"


@pytest.mark.tensorrt
def test_nothing_stands_between_a_4_bit_weight_and_its_product(rtx: Library, graph: Path) -> None:
    """A cast in between would keep TensorRT from its 4-bit kernels."""
    network, *_ = parsed(rtx, graph)
    set_precision(rtx.module, network, "bf16")
    maker = {layer.get_output(i).name: layer for layer in layers(network) for i in range(layer.num_outputs)}
    quantized = 0
    for layer in layers(network):
        if layer.type.name != "MATRIX_MULTIPLY" or not layer.name.startswith("text/"):
            continue
        if "/attention/" in layer.name:  # of queries and keys, neither of which is a weight
            continue
        weight = maker[layer.get_input(1).name]
        while weight.type.name == "SHUFFLE":
            weight = maker[weight.get_input(0).name]
        assert weight.type.name == "DEQUANTIZE", layer.name
        assert maker[weight.get_input(0).name].get_output(0).dtype.name == "INT4"
        quantized += 1
    assert quantized >= 8


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_an_engine_is_built_for_several_gpus_at_once(
    rtx: Library, graph: Path, family_task: Task, precision: str
) -> None:
    target = find_target("rtx:8.6,8.9,12.0")
    phases = []
    engine = tensorrt_build.build_engine(
        bundle_of(graph, family_task),
        target,
        precision=precision,
        max_batch=4,
        report=lambda phase, step, steps: phases.append((phase, step, steps)),
    )
    assert engine.nbytes > 1_000_000
    assert "Building engine" in {phase for phase, _, _ in phases}
    assert any(0 < step <= steps for _, step, steps in phases)


def test_an_operator_that_is_not_read_names_the_export_that_does_without(
    graph: Path, family_task: Task, opset: int
) -> None:
    """The parser is a stand-in that refuses the first operator, as one before 10.15 does Attention."""
    error = SimpleNamespace(
        node_operator=lambda: "Attention", node_name=lambda: "vision/Attention", desc=lambda: "no importer"
    )
    parser: Any = SimpleNamespace(parse=lambda data, path: False, num_errors=1, get_error=lambda index: error)
    library: Any = SimpleNamespace(name="tensorrt", version="10.3.0")
    bundle = bundle_of(graph, family_task)
    about = replace(bundle.manifest.graph, opset=opset)
    bundle = replace(bundle, manifest=replace(bundle.manifest, graph=about))
    with pytest.raises(ProviderError, match="tensorrt 10.3.0 cannot read the operator Attention") as refused:
        tensorrt_build._parse(parser, library, bundle, graph.name)
    assert "take a newer tensorrt" in str(refused.value)
    assert ("--opset 21" in str(refused.value)) == (opset == OPSET)


@pytest.mark.parametrize(
    ("stored", "precision"), [(TensorProto.BFLOAT16, "bf16"), (TensorProto.FLOAT16, "fp16")]
)
def test_rounding_alone_stays_within_the_tolerance(
    graph: Path, family_task: Task, stored: int, precision: str
) -> None:
    """Computed by ONNX Runtime with the products' inputs and results rounded as set_precision asks for.

    It says what an engine may be off by, not what an engine gives: none has been executed.
    """
    import onnxruntime as ort

    model = onnx.load(graph)
    images = np.stack([render(wafer, family_task.render) for wafer in make_wafers(4)])
    scores = []
    for each in (model, rounded(model, stored)):
        session = ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        scores.append(session.run(None, {"image": images})[0])
    far = float(np.abs(scores[0] - scores[1]).max())
    assert 0 < far < tensorrt_build.TOLERANCES[precision]


def rounded(model: onnx.ModelProto, stored: int) -> onnx.ModelProto:
    """``model`` with casts to and from ``stored`` around each product but the head's."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []

    def through(value: str, result: str) -> str:
        narrow = f"{result}.narrow"
        nodes.append(helper.make_node("Cast", [value], [narrow], to=stored))
        nodes.append(helper.make_node("Cast", [narrow], [result], to=TensorProto.FLOAT))
        return result

    for index, node in enumerate(list(copy.graph.node)):
        product = node.op_type in ("MatMul", "Gemm", "Attention") and node.name != HEAD
        if product:
            for place, value in enumerate(node.input):
                node.input[place] = through(value, f"in.{index}.{place}")
        elif node.op_type == "DequantizeLinear":
            node.input[1] = through(node.input[1], f"scales.{index}")
        nodes.append(node)
        if product:
            result, node.output[0] = node.output[0], f"exact.{index}"
            through(f"exact.{index}", result)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
