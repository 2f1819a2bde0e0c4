"""Weights: what is read from a checkpoint folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from export.weights import Dense, Quantized, Weights, side_by_side
from train.loading import load_checkpoint
from wafervlm.errors import CheckpointError

Q = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_linear_layers_are_read_as_input_by_output(checkpoint: Path) -> None:
    stored = load_file(checkpoint / "model.safetensors")[f"{Q}.weight"].numpy()
    layer = Weights(checkpoint).linear(Q)
    assert isinstance(layer, Dense)
    assert layer.bias is None
    np.testing.assert_array_equal(layer.weight, stored.T)
    with_bias = Weights(checkpoint).linear("model.visual.blocks.0.attn.qkv")
    assert isinstance(with_bias, Dense)
    assert with_bias.bias is not None
    assert with_bias.weight.shape[1] == len(with_bias.bias)


def test_a_checkpoint_in_several_files_is_read_through_its_index(copy: Path, checkpoint: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, copy / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    several, one = Weights(copy), Weights(checkpoint)
    for name in names:
        np.testing.assert_array_equal(several.array(name), one.array(name))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("family", ["qwen2_5_vl"], indirect=True)
def test_tensors_go_by_the_models_names_in_either_spelling(rough: Path, tmp_path: Path, legacy: bool) -> None:
    model = load_checkpoint(rough).model
    folder = Path(shutil.copytree(rough, tmp_path / "copy"))
    if not legacy:
        save_file(model.state_dict(), folder / "model.safetensors")
    stored = set(load_file(folder / "model.safetensors"))
    assert {"visual.merger.ln_q.weight", "model.norm.weight"} <= stored or not legacy
    assert not any(name.startswith("visual.") for name in stored) or legacy
    weights = Weights(folder)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(weights.array(name), tensor.numpy())


def test_rows_are_those_of_the_matrix(checkpoint: Path) -> None:
    name = "model.language_model.embed_tokens.weight"
    weights = Weights(checkpoint)
    table = weights.array(name)
    np.testing.assert_array_equal(weights.rows(name, [7, 3, 7]), table[[7, 3, 7]])
    assert weights.rows(name, []).shape == (0, table.shape[1])
    with pytest.raises(CheckpointError, match=f"{len(table)} rows .* token {len(table)} of its tokenizer"):
        weights.rows(name, [3, len(table)])


def test_another_architecture_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        Weights(copy)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors[f"{Q}.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"no tensor '{Q}.weight'"):
        Weights(copy).linear(Q)


def test_a_truncated_file_is_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot read"):
        Weights(copy)


def test_side_by_side_gives_the_outputs_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    dense = [Dense(rng.standard_normal((64, n)).astype(np.float32)) for n in (4, 2)]
    joined = side_by_side(dense)
    assert isinstance(joined, Dense)
    np.testing.assert_allclose(x @ joined.weight, np.hstack([x @ d.weight for d in dense]), atol=1e-5)
    levels = [
        Quantized(rng.integers(-8, 8, (64, n)).astype(np.int8), rng.random((2, n)).astype(np.float32))
        for n in (4, 2)
    ]
    whole = side_by_side(levels)
    assert isinstance(whole, Quantized)
    np.testing.assert_array_equal(whole.dense().weight, np.hstack([q.dense().weight for q in levels]))
    biases = [np.arange(n, dtype=np.float32) for n in (4, 2)]
    biased = side_by_side([replace(q, bias=bias) for q, bias in zip(levels, biases, strict=True)])
    assert isinstance(biased, Quantized)
    assert biased.bias is not None
    np.testing.assert_array_equal(biased.bias, [0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(biased.dense().bias, biased.bias)
    with pytest.raises(CheckpointError, match="only some have a bias"):
        side_by_side([replace(levels[0], bias=biases[0]), levels[1]])
    for pair in ([dense[0], levels[0]], [levels[0], dense[0]]):
        with pytest.raises(CheckpointError, match="quantized differently"):
            side_by_side(pair)
