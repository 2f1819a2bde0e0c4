"""Large models: weights go to their file while the graph is built, the reference comes layer by layer."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from calibrate.multiplied import load_reference_streamed
from calibrate.pack import load_quantized
from export.builder import Builder
from export.estimate import estimate, graph_bytes
from export.external import ALIGNMENT, WeightFile
from export.golden import drawn_evenly
from export.stage import ExportConfig, export, golden_samples
from export.weights import Dense
from tests.export.models import session
from train.dataset import Sample
from train.inventory import take_inventory
from train.loading import load_checkpoint
from train.scorer import label_log_probs, tree_log_probs
from train.synthetic import wafers
from wafervlm.bundle import open_bundle
from wafervlm.errors import CheckpointError, UsageError
from wafervlm.golden import read_golden
from wafervlm.render import render
from wafervlm.task import Task
from wafervlm.verification import verify


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large."""
    monkeypatch.setattr("train.inventory.LARGE_BYTES", 0)


@pytest.mark.parametrize("kind", ["float32", "int4"])
def test_a_reference_layer_by_layer_is_the_reference(
    rough: Path, rough_int4: Path, family_task: Task, kind: str
) -> None:
    path = rough_int4 if kind == "int4" else rough
    whole = load_quantized(path) if kind == "int4" else load_checkpoint(path)
    images = [render(wafer, family_task.render) for wafer in wafers(["Donut", "Scratch"], seed=1)]
    found = tree_log_probs(load_reference_streamed(path), family_task, images, batch_size=2)
    np.testing.assert_allclose(found, label_log_probs(whole, family_task, images), atol=1e-4)


@pytest.mark.usefixtures("large")
def test_a_streamed_bundle_is_the_bundle(
    rough_int4: Path, family_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExportConfig(rough_int4, family_task, golden_maps=5)
    export(config, tmp_path / "streamed")
    monkeypatch.setattr("train.inventory.LARGE_BYTES", 1 << 40)
    export(config, tmp_path / "whole")
    streamed, whole = (open_bundle(tmp_path / name) for name in ("streamed", "whole"))
    assert streamed.external_data and not whole.external_data
    for name, tolerance in (("exact", 1e-4), ("deployed", None)):
        figures = verify(tmp_path / "streamed")[name]
        assert figures["max_abs_difference"] <= (tolerance or streamed.manifest.verify_tolerance)
    np.testing.assert_allclose(read_golden(streamed).reference, read_golden(whole).reference, atol=1e-4)
    one, other = (onnx.load(bundle.path / "model.onnx") for bundle in (streamed, whole))
    assert [node.op_type for node in one.graph.node] == [node.op_type for node in other.graph.node]
    for mine, theirs in zip(one.graph.initializer, other.graph.initializer, strict=True):
        assert (mine.name, mine.data_type, mine.dims) == (theirs.name, theirs.data_type, theirs.dims)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(mine), onnx.numpy_helper.to_array(theirs))


def test_what_is_stored_begins_at_a_page_and_is_stored_once(tmp_path: Path) -> None:
    big = ir.Tensor(np.arange(3000, dtype=np.float32), name="big")
    with WeightFile(tmp_path / "weights.data") as file:
        small = ir.Tensor(np.arange(3), name="small")
        assert file.store(small, "small") is small
        first, other = file.store(big, "big"), file.store(ir.Tensor(big.numpy() + 1, name="big"), "other")
        assert file.store(ir.Tensor(big.numpy().copy(), name="big"), "big") is first
    assert isinstance(first, ir.ExternalTensor) and isinstance(other, ir.ExternalTensor)
    assert first.offset == 0 and other.offset == -(-12000 // ALIGNMENT) * ALIGNMENT
    np.testing.assert_array_equal(other.numpy(), big.numpy() + 1)
    assert (tmp_path / "weights.data").stat().st_size == other.offset + 12000


def test_weights_beyond_four_gigabytes_are_found(tmp_path: Path) -> None:
    """The file is sparse: it takes no room on the disk."""
    rng = np.random.default_rng(0)
    layer = Dense(rng.standard_normal((64, 48)).astype(np.float32))
    with WeightFile(tmp_path / "model.onnx.data") as file:
        assert file._file is not None
        file._file.seek(5 << 30)
        builder = Builder(file)
        x = ir.val("x", ir.DataType.FLOAT, ["batch", 64])
        y = builder.linear(x, "layer", layer)
        y.name, y.dtype = "y", ir.DataType.FLOAT
        ir.save(builder.model([x], [y], "far"), tmp_path / "model.onnx")
    value = rng.standard_normal((2, 64)).astype(np.float32)
    found = session(tmp_path / "model.onnx").run(None, {"x": value})[0]
    np.testing.assert_allclose(found, value @ layer.weight, atol=1e-5)


@pytest.mark.usefixtures("large")
def test_a_large_model_has_one_golden_map_of_each_label(rough_int4: Path, family_task: Task) -> None:
    config = ExportConfig(rough_int4, family_task)
    assert len(golden_samples(config, (), large=True)) == len(family_task.labels)
    assert len(golden_samples(config, (), large=False)) == 2 * len(family_task.labels)
    with pytest.raises(UsageError, match="at least one golden map"):
        ExportConfig(rough_int4, family_task, golden_maps=0)


def test_fewer_golden_maps_are_of_different_labels() -> None:
    every = [Sample(wafer, label) for label in "abc" for wafer in wafers(["Loc", "Loc"], seed=0)]
    assert [sample.label for sample in drawn_evenly(every, 4)] == ["a", "a", "b", "c"]
    assert drawn_evenly(every, 99) == every


@pytest.mark.parametrize(
    ("part", "message"),
    [("qweight", "they misshape|do not fit"), ("scales", "lacks the tensor scales"), ("norm", "they lack")],
)
def test_a_broken_checkpoint_is_told_before_anything_is_computed(
    rough_int4: Path, family_task: Task, tmp_path: Path, part: str, message: str
) -> None:
    copy = Path(shutil.copytree(rough_int4, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if part in name and ".layers.0." in name)
    if part == "qweight":
        tensors[name] = tensors[name][:-4].contiguous()
    else:
        del tensors[name]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        export(ExportConfig(copy, family_task), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("large")
def test_the_estimate_follows_from_the_shape(rough_int4: Path, rough: Path, family_task: Task) -> None:
    config = ExportConfig(rough_int4, family_task)
    cost, more = estimate(config), estimate(ExportConfig(rough_int4, family_task, golden_maps=90))
    assert more.parts["reference"].products == pytest.approx(10 * cost.parts["reference"].products)
    assert more.parts["graph"] == cost.parts["graph"]
    assert "deployed" in cost.parts and "deployed" not in estimate(ExportConfig(rough, family_task)).parts
    inventory = take_inventory(rough_int4)
    # Text in half a byte and scales of float32 for 32 weights, the rest in two bytes.
    assert graph_bytes(config, inventory) == pytest.approx(
        inventory.layer_linear * 2 * (0.5 + 4 / 32)
        + 2 * (inventory.text - 2 * inventory.layer_linear + inventory.vision)
    )
