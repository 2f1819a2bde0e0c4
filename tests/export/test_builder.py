"""Builder: names, narrow storage, and the form of a quantized layer."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from export.builder import Builder, narrowest
from export.weights import Dense, Integer, Linear, Quantized
from tests.export.models import session

RNG = np.random.default_rng(0)


def saved(layer: Linear | Integer, path: Path, *, flat: bool = False) -> Path:
    builder = Builder()
    rows = layer.weight.shape[0] if isinstance(layer, Dense) else layer.levels.shape[0]
    x = ir.val("x", ir.DataType.FLOAT, ["batch", rows] if flat else ["batch", 5, rows])
    y = builder.linear(x, "layer", layer, flat=flat)
    y.name, y.dtype = "y", ir.DataType.FLOAT
    ir.save(builder.model([x], [y], "one layer"), path)
    return path


def quantized(rows: int, columns: int, group: int) -> Quantized:
    levels = RNG.integers(-8, 8, (rows, columns)).astype(np.int8)
    return Quantized(levels, RNG.uniform(0.01, 0.1, (rows // group, columns)).astype(np.float32))


@pytest.mark.parametrize("group", [16, 32, 128])
def test_a_quantized_layer_is_multiplied_out_as_it_is_defined(tmp_path: Path, group: int) -> None:
    layer = quantized(128, 24, group)
    x = RNG.standard_normal((2, 5, 128)).astype(np.float32)
    expected = x @ np.array(
        [[layer.levels[k, n] * layer.scales[k // group, n] for n in range(24)] for k in range(128)],
        np.float32,
    )
    np.testing.assert_allclose(layer.dense().weight.shape, (128, 24))
    y = session(saved(layer, tmp_path / "layer.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, expected, atol=2e-5)


def test_onnx_runtime_fuses_a_quantized_layer_to_its_4_bit_kernel(tmp_path: Path) -> None:
    session(saved(quantized(128, 24, 32), tmp_path / "layer.onnx"), optimised=tmp_path / "optimised.onnx")
    fused = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert fused == ["MatMulNBits"]


def test_four_bit_weights_take_half_a_byte_each(tmp_path: Path) -> None:
    path = saved(quantized(512, 256, 128), tmp_path / "layer.onnx")
    assert path.stat().st_size < 512 * 256 / 2 + 4 * 256 * 4 + 1000


def test_an_integer_layer_is_rounded_by_column_and_leaves_room_for_sums() -> None:
    weight = RNG.standard_normal((64, 10)).astype(np.float32) * np.linspace(0.01, 3, 10, dtype=np.float32)
    weight[:, 4] = 0
    layer = Integer.of(Dense(weight))
    assert layer.levels.dtype == np.int8
    assert np.abs(layer.levels).max() == 64
    assert (np.abs(layer.levels * layer.scales - weight) <= layer.scales / 2 + 1e-7).all()


@pytest.mark.parametrize("bias", [False, True])
def test_an_integer_layer_is_one_product_of_bytes(tmp_path: Path, bias: bool) -> None:
    weight = RNG.standard_normal((64, 24)).astype(np.float32)
    layer = Integer.of(Dense(weight, RNG.standard_normal(24).astype(np.float32) if bias else None))
    x = (3 * RNG.standard_normal((7, 64)) + 1).astype(np.float32)
    # The operator's definition: 0 is kept exact, and the range of all of x is cut into 255 steps.
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    levels = np.clip(np.rint(x / scale) + zero, 0, 255)
    expected = (levels - zero) @ layer.levels.astype(np.float64) * scale * layer.scales
    expected += 0 if layer.bias is None else layer.bias
    path, optimised = saved(layer, tmp_path / "layer.onnx", flat=True), tmp_path / "optimised.onnx"
    np.testing.assert_allclose(session(path, optimised=optimised).run(None, {"x": x})[0], expected, atol=2e-4)
    np.testing.assert_allclose(expected, x @ weight + (layer.bias if bias else 0), atol=2.0)
    assert [node.op_type for node in onnx.load(optimised).graph.node] == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("flat", [False, True])
def test_a_dense_layer_with_bias(tmp_path: Path, flat: bool) -> None:
    layer = Dense(RNG.standard_normal((8, 3)).astype(np.float32), RNG.standard_normal(3).astype(np.float32))
    assert layer.bias is not None
    x = RNG.standard_normal((4, 8) if flat else (4, 5, 8)).astype(np.float32)
    y = session(saved(layer, tmp_path / "layer.onnx", flat=flat)).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, x @ layer.weight + layer.bias, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, -2.5, 2.0**100], ml_dtypes.bfloat16),
        ([1.0, 1 + 2**-10], np.float16),
        ([1.0, 1 + 2**-10, 1e5], np.float32),
        ([0.1], np.float32),
    ],
)
def test_weights_are_narrowed_only_where_nothing_is_lost(values: list[float], kind: type) -> None:
    array = np.array(values, dtype=np.float32)
    narrow = narrowest(array)
    assert narrow.dtype == kind
    np.testing.assert_array_equal(narrow.astype(np.float32), array)


def test_names_follow_scopes_and_are_unique() -> None:
    builder = Builder()
    x = ir.val("x", ir.DataType.FLOAT, [2])
    with builder.scope("text"), builder.scope("layer.0"):
        first, second = builder.op("Neg", x), builder.op("Neg", x)
        one = builder.constant("one", [1])
    assert (first.name, second.name, one.name) == (
        "text/layer.0/Neg",
        "text/layer.0/Neg.1",
        "text/layer.0/one",
    )
    assert builder.op("Neg", x).name == "Neg"
