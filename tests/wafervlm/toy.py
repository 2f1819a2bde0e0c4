"""A small real graph and its bundle: colours pooled over a 4x4 grid, an INT4 layer, log-softmax."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wafervlm.bundle import GOLDEN, Graph, Manifest, write_manifest
from wafervlm.golden import Golden, write_golden
from wafervlm.render import RenderSpec, render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

SIDE, POOL, GROUP = 32, 4, 16
FEATURES = 3 * POOL * POOL
TEMPERATURE = 1.7
LABELS = ("Center", "Donut", "Edge-Loc", "none")


@dataclass(frozen=True)
class Head:
    """The INT4 layer: ``codes`` (K, L) in -8..7, ``scales`` (K / GROUP, L)."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def weights(self) -> NDArray[np.float64]:
        return self.codes * np.repeat(self.scales.astype(np.float64), GROUP, axis=0)


def make_head(labels: int = len(LABELS), seed: int = 3) -> Head:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (FEATURES, labels)).astype(np.int8)
    return Head(codes, rng.uniform(0.1, 0.4, (FEATURES // GROUP, labels)).astype(np.float32))


def expected(images: NDArray[np.uint8], head: Head) -> NDArray[np.float64]:
    """What the graph must give, computed by numpy in float64."""
    block = SIDE // POOL
    cells = (images.astype(np.float64) / 255).reshape(-1, POOL, block, POOL, block, 3).mean(axis=(2, 4))
    scores = cells.transpose(0, 3, 1, 2).reshape(len(images), FEATURES) @ head.weights
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def make_graph(
    head: Head, *, batch: str | int = "batch", side: int = SIDE, nan: bool = False, slow: bool = False
) -> onnx.ModelProto:
    """The graph contract in small. ``slow`` adds a loop whose length is the green of the first pixel."""
    labels = head.codes.shape[1]
    codes = helper.make_tensor("codes", TensorProto.INT4, head.codes.shape, head.codes.ravel().tolist())
    constants = {
        "scales": head.scales,
        "byte": np.float32(0 if nan else 255),
        "flat": np.array([0, FEATURES], dtype=np.int64),
    }
    block = side // POOL
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "byte"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool", ["planes"], ["cells"], kernel_shape=[block, block], strides=[block, block]
        ),
        helper.make_node("Reshape", ["cells", "flat"], ["features"]),
        helper.make_node("DequantizeLinear", ["codes", "scales"], ["weights"], axis=0, block_size=GROUP),
        helper.make_node("MatMul", ["features", "weights"], ["scores"]),
    ]
    if slow:
        constants |= _slow_constants()
        nodes += _slow_nodes()
    result = "slowed" if slow else "scores"
    nodes.append(helper.make_node("LogSoftmax", [result], ["label_log_probs"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, side, side, 3])],
        [helper.make_tensor_value_info("label_log_probs", TensorProto.FLOAT, [batch, labels])],
        [codes, *(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _slow_constants() -> dict[str, NDArray[Any]]:
    whole = np.array([0, 0, 0, 1], dtype=np.int64)
    return {
        "from": whole,
        "to": whole + 1,
        "pace": np.int64(20_000),
        "scalar": np.empty(0, dtype=np.int64),
        "zero": np.float32(0),
        "on": np.bool_(True),
    }


def _slow_nodes() -> list[onnx.NodeProto]:
    value = helper.make_tensor_value_info
    step = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Cos", ["angle"], ["next_angle"]),
        ],
        "step",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("angle", TensorProto.FLOAT, []),
        ],
        [value("go_on", TensorProto.BOOL, []), value("next_angle", TensorProto.FLOAT, [])],
    )
    return [
        helper.make_node("Slice", ["image", "from", "to"], ["green"]),
        helper.make_node("Cast", ["green"], ["green_whole"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["green_whole", "scalar"], ["green_scalar"]),
        helper.make_node("Mul", ["green_scalar", "pace"], ["trips"]),
        helper.make_node("Loop", ["trips", "on", "zero"], ["angle_end"], body=step),
        helper.make_node("Mul", ["angle_end", "zero"], ["nothing"]),
        helper.make_node("Add", ["scores", "nothing"], ["slowed"]),
    ]


def make_wafers(count: int, seed: int = 0, sides: tuple[int, int] = (9, 40)) -> list[WaferMap]:
    """Round wafers of differing grids and failing patterns, none like another."""
    rng = np.random.default_rng(seed)
    wafers = []
    for index in range(count):
        rows, columns = (int(n) for n in rng.integers(*sides, 2))
        y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        failing = rng.random((rows, columns)) < rng.uniform(0.1, 0.9) * (
            np.hypot(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)) < 0.7
        )
        wafers.append(WaferMap(np.where(np.hypot(x, y) <= 1, 1 + failing, 0), id=f"wafer-{index}"))
    return wafers


def make_task(labels: tuple[str, ...] = LABELS) -> Task:
    return Task(labels=labels, render=RenderSpec(SIDE, SIDE))


def write_bundle(
    folder: Path, model: onnx.ModelProto, head: Head, *, verify_tolerance: float = 0.2, **changes: Any
) -> Path:
    """Write a whole bundle of ``model``, its golden scores computed by numpy."""
    folder.mkdir(parents=True)
    task = changes.pop("task", make_task())
    wafers = make_wafers(6, seed=11)
    reference = expected(np.stack([render(wafer, task.render) for wafer in wafers]), head)
    labels = [task.labels[i] for i in reference.argmax(1)]
    onnx.save(model, folder / "model.onnx")
    write_golden(folder / GOLDEN, Golden(tuple(wafers), tuple(labels), reference.astype(np.float32)))
    manifest = {
        "name": "toy",
        "created": "2026-11-21T08:00:00+00:00",
        "task": task,
        "graph": Graph(precision="int4", group_size=GROUP, accuracy_level=4),
        "temperature": TEMPERATURE,
        "verify_tolerance": verify_tolerance,
        "provenance": ({"stage": "export", "inputs": {"checkpoint": "0" * 64}},),
        "parity": {"max_abs_difference": 1e-6},
        "citations": ("A citation.",),
    }
    write_manifest(folder, Manifest(**(manifest | changes)))
    return folder
