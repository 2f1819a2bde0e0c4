"""The whole graph against transformers: a forward pass of its own for each label."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from calibrate.pack import load_quantized
from export.builder import IR_VERSIONS, OPSET
from export.graph import classify_graph
from export.stage import build_model
from export.vision import Normalisation
from export.weights import Weights
from tests.export.models import make_task, random_images, run, session
from train.loading import load_checkpoint
from train.nano.config import CHAT_TEMPLATE
from train.scorer import label_log_probs
from train.tree import label_tree
from wafervlm.errors import CheckpointError, TaskError
from wafervlm.manifest import VISIONS, Vision
from wafervlm.render import RenderSpec, RgbImage
from wafervlm.task import Order, Task

# Differences of float32 rounding stay far below the gate of 1e-3; a wrong mask or position does not.
CLOSE = 2e-5
# Operators that came with opset 23.
NEWEST = {"Attention", "RMSNormalization", "RotaryEmbedding"}


def exported(checkpoint: Path, task: Task, folder: Path, opset: int = OPSET) -> Path:
    path = folder / "model.onnx"
    ir.save(build_model(Weights(checkpoint), task, opset=opset), path)
    return path


def sized(task: Task, count: int) -> list[RgbImage]:
    return random_images(count, task.render.height)


@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_scores_are_those_of_separate_forwards(
    rough: Path, family_task: Task, opset: int, tmp_path: Path, order: Order
) -> None:
    task = replace(family_task, order=order)
    images = sized(family_task, 3)
    expected = label_log_probs(load_checkpoint(rough), task, images)
    scores = run(exported(rough, task, tmp_path, opset), images)
    assert np.abs(scores - expected).max() < CLOSE
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "lengths"),
    [
        (("a", "wafer", "q", "zq"), [1, 1, 2, 3]),
        (("qa", "qb", "qvw", "xq"), [3, 3, 4, 3]),
        (("q", "qx", "qxy", "zz"), [2, 3, 4, 3]),
        (("ring", "ring q", "ring map"), [1, 3, 2]),
    ],
    ids=[
        "one to three tokens",
        "shared beginnings",
        "one the beginning of another",
        "a word and its continuation",
    ],
)
@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_labels_of_every_shape(
    checkpoint: Path, tmp_path: Path, labels: tuple[str, ...], lengths: list[int], order: Order
) -> None:
    task = make_task(labels, order=order)
    tree = label_tree(AutoTokenizer.from_pretrained(checkpoint), task)
    assert [len(sequence) - 1 for sequence in tree.sequences] == lengths  # the token after the label left out
    images = random_images(2)
    expected = label_log_probs(load_checkpoint(checkpoint), task, images)
    assert np.abs(run(exported(checkpoint, task, tmp_path), images) - expected).max() < CLOSE


def test_every_batch_size_gives_the_same_scores(
    rough: Path, family_task: Task, opset: int, tmp_path: Path
) -> None:
    path, images = exported(rough, family_task, tmp_path, opset), sized(family_task, 5)
    together = run(path, images)
    for part in (slice(0, 1), slice(1, 3), slice(0, 5)):
        np.testing.assert_allclose(run(path, images[part]), together[part], atol=1e-5)


def test_a_bfloat16_checkpoint_is_exported_without_loss(
    rough_half: Path, family_task: Task, tmp_path: Path
) -> None:
    path, images = exported(rough_half, family_task, tmp_path), sized(family_task, 2)
    expected = label_log_probs(load_checkpoint(rough_half), family_task, images)
    assert np.abs(run(path, images) - expected).max() < CLOSE
    held = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(path).graph.initializer}
    matrices = {name: kind for name, kind in held.items() if name.endswith("/weight")}
    assert len(matrices) > 30
    # The patch embedding takes the pixels' normalisation into itself, which bfloat16 cannot hold.
    assert {name for name, kind in matrices.items() if kind != "BFLOAT16"} == {"vision/patches/weight"}


@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_int4_scores_are_those_of_the_dequantized_weights(
    rough_int4: Path, family_task: Task, opset: int, tmp_path: Path, order: Order
) -> None:
    task = replace(family_task, order=order)
    path, images = exported(rough_int4, task, tmp_path, opset), sized(family_task, 5)
    expected = label_log_probs(load_quantized(rough_int4), task, images)
    for part in (slice(0, 1), slice(1, 3), slice(0, 5)):
        assert np.abs(run(path, images[part]) - expected[part]).max() < CLOSE
    session(path, optimised=tmp_path / "optimised.onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    # Per layer: q, k and v in one product, the output, gate and up in one, down; the last layer's q apart.
    assert operators.count("MatMulNBits") == 4 + 5
    assert "DequantizeLinear" not in operators


def test_a_vision_tower_in_integers_comes_near(rough: Path, family_task: Task, tmp_path: Path) -> None:
    images = sized(family_task, 3)
    exact = run(exported(rough, family_task, tmp_path), images)
    ir.save(build_model(Weights(rough), family_task, "int8"), tmp_path / "int8.onnx")
    assert 0 < np.abs(run(tmp_path / "int8.onnx", images) - exact).max() < 0.2
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    products = [node.op_type for node in nodes if node.name.startswith("vision/") and node.op_type != "Cast"]
    # The patch embedding alone stays in float32.
    assert products.count("Gemm") == 1
    assert products.count("MatMulInteger") == (3 * 4 + 3 * 2 if "qwen3" in rough.name else 3 * 4 + 2)


@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_sliding_attention_is_refused(rough: Path, family_task: Task, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(rough, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["layer_types"] = ["full_attention", "sliding_attention"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="sliding attention, for which there is no graph"):
        build_model(Weights(copy), family_task)


@pytest.mark.parametrize("vision", VISIONS)
def test_both_operator_sets_give_the_same_scores(
    rough_int4: Path, family_task: Task, tmp_path: Path, vision: Vision
) -> None:
    images, found = sized(family_task, 3), []
    for number in IR_VERSIONS:
        ir.save(build_model(Weights(rough_int4), family_task, vision, opset=number), tmp_path / "model.onnx")
        found.append(run(tmp_path / "model.onnx", images))
    assert np.abs(found[0] - found[1]).max() < CLOSE


def test_the_file_holds_standard_operators_with_a_dynamic_batch(
    rough: Path, family_task: Task, opset: int, tmp_path: Path
) -> None:
    path = exported(rough, family_task, tmp_path, opset)
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    operators = {node.op_type for node in model.graph.node}
    assert bool(operators & NEWEST) == (opset == OPSET)
    read = {name for node in model.graph.node for name in node.input}
    assert {constant.name for constant in model.graph.initializer} <= read
    assert not operators & {"NonZero", "Where", "If", "Loop", "Scatter", "ScatterND", "ScatterElements"}
    assert all(len(node.output) == 1 for node in model.graph.node if node.op_type == "Attention")
    side = family_task.render.height
    image, scores = model.graph.input[0], model.graph.output[0]
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", side, side, 3]
    assert [d.dim_param or d.dim_value for d in scores.type.tensor_type.shape.dim] == ["batch", 9]
    assert (scores.name, scores.type.tensor_type.elem_type) == ("label_log_probs", onnx.TensorProto.FLOAT)


def test_openvino_reads_the_same_file(
    int4_checkpoint: Path, tiny_task: Task, opset: int, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    path, images = exported(int4_checkpoint, tiny_task, tmp_path, opset), random_images(2)
    exact = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": 1,
    }
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    assert np.abs(compiled([np.stack(images)])[0] - run(path, images)).max() < 1e-4


def test_tokens_that_merge_across_the_answer_prefix_are_refused(checkpoint: Path) -> None:
    merging = Tokenizer(models.BPE())
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    merging.train_from_iterator(["It is ring.", "It is line."] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, chat_template=CHAT_TEMPLATE)
    with pytest.raises(TaskError, match="merges with the text before it"):
        classify_graph(Weights(checkpoint), tokenizer, Normalisation(), make_task(("ring", "line")))


def test_labels_that_cannot_be_told_apart_are_refused(checkpoint: Path) -> None:
    # Byte-level tokens normalise nothing, so only a tokenizer that folds case makes these one.
    folding = AutoTokenizer.from_pretrained(checkpoint)
    folding.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TaskError, match="cannot be told apart"):
        classify_graph(Weights(checkpoint), folding, Normalisation(), make_task(("ring", "Ring")))


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("qwen3_vl", (64, 72), "multiples of 16"),
        ("qwen3_vl", (56, 64), "multiples of 16"),
        ("qwen3_vl", (128, 128), "would be resampled"),
        ("qwen2_5_vl", (96, 84), "multiples of 28"),
        ("qwen2_5_vl", (140, 140), "would be resampled"),
    ],
    indirect=["family"],
)
def test_image_sizes_that_do_not_fit_are_refused(rough: Path, size: tuple[int, int], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        build_model(Weights(rough), Task(labels=("a", "b"), render=RenderSpec(*size)))
