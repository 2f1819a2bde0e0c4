"""The AutoGPTQ v1 layout: written, read back, and refused where it is another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from calibrate.gptq import QuantizedWeight, Scheme, round_to_nearest
from calibrate.layers import linears, put, round_model
from calibrate.pack import PACKED, load_quantized, pack, read_packed, unpack, write_quantized
from calibrate.replay import text_core
from train.loading import Checkpoint, checkpoint_family, load_checkpoint
from train.merge import write_checkpoint
from train.scorer import tree_log_probs
from wafervlm.errors import CheckpointError, ConfigError
from wafervlm.render import render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

Q = "model.language_model.layers.0.self_attn.q_proj"


def random_weight(bits: int, inputs: int, outputs: int, group: int, seed: int = 0) -> QuantizedWeight:
    rng = np.random.default_rng(seed)
    half = 1 << (bits - 1)
    levels = rng.integers(-half, half, (outputs, inputs), dtype=np.int8)
    scales = rng.uniform(0.001, 2.0, (outputs, inputs // group)).astype(np.float16)
    return QuantizedWeight(torch.from_numpy(levels), torch.from_numpy(scales))


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    groups=st.integers(1, 4),
    outputs=st.sampled_from([32, 96]),
    seed=st.integers(0, 1000),
)
def test_packed_weights_unpack_to_the_same(bits: int, groups: int, outputs: int, seed: int) -> None:
    weight = random_weight(bits, 32 * groups, outputs, 32, seed)
    found = unpack(pack(weight, bits), "a layer", bits)
    assert torch.equal(found.levels, weight.levels)
    assert torch.equal(found.scales, weight.scales)
    assert torch.equal(found.dense(), weight.dense())


@pytest.mark.parametrize("bits", [3, 4])
def test_nanos_weights_unpack_to_the_same(nano: Checkpoint, bits: int) -> None:
    for name, module in linears(nano.model, 0).items():
        weight = round_to_nearest(module.weight.detach(), Scheme(bits=bits, group=32))
        found = unpack(pack(weight, bits), name, bits)
        assert torch.equal(found.levels, weight.levels) and torch.equal(found.scales, weight.scales)
        assert torch.equal(found.dense(), weight.dense()), name
        assert len(found.levels.unique()) == 1 << bits


def test_four_bits_lie_where_autogptq_puts_them() -> None:
    weight = random_weight(4, 64, 16, 32)
    parts = pack(weight, 4)
    assert {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()} == {
        "qweight": (torch.int32, (8, 16)),
        "qzeros": (torch.int32, (2, 2)),
        "scales": (torch.float16, (2, 16)),
        "g_idx": (torch.int32, (64,)),
    }
    assert (parts["qzeros"] == 0x77777777).all()
    assert parts["g_idx"].tolist() == [0] * 32 + [1] * 32
    words = parts["qweight"].numpy().view(np.uint32)
    for i in range(8):
        nibbles = (words >> np.uint32(4 * i)) & np.uint32(15)
        assert (nibbles.astype(int) - 8 == weight.levels.numpy().T[i::8]).all()


def autogptq_three_bits(codes: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """AutoGPTQ 0.7's loop: 32 values down a column to three words, two of them across a border."""
    packed = np.zeros((codes.shape[0] // 32 * 3, codes.shape[1]), dtype=np.uint32)
    i = row = 0
    while row < len(packed):
        for j in range(i, i + 10):
            packed[row] |= codes[j] << (3 * (j - i))
        i += 10
        packed[row] |= codes[i] << 30
        row += 1
        packed[row] |= (codes[i] >> 2) & 1
        i += 1
        for j in range(i, i + 10):
            packed[row] |= codes[j] << (3 * (j - i) + 1)
        i += 10
        packed[row] |= codes[i] << 31
        row += 1
        packed[row] |= (codes[i] >> 1) & 3
        i += 1
        for j in range(i, i + 10):
            packed[row] |= codes[j] << (3 * (j - i) + 2)
        i += 10
        row += 1
    return packed


def test_three_bits_lie_where_autogptq_puts_them() -> None:
    weight = random_weight(3, 128, 32, 32)
    parts = pack(weight, 3)
    codes = (weight.levels.numpy().T.astype(int) + 4).astype(np.uint32)
    assert (parts["qweight"].numpy().view(np.uint32) == autogptq_three_bits(codes)).all()
    zeros = autogptq_three_bits(np.full((32, 4), 3, dtype=np.uint32))
    assert (parts["qzeros"].numpy().view(np.uint32) == zeros.T).all()


@pytest.mark.parametrize(("inputs", "outputs", "bits"), [(64, 20, 4), (64, 40, 3), (40, 64, 3)])
def test_sizes_that_do_not_fill_words_are_refused(inputs: int, outputs: int, bits: int) -> None:
    with pytest.raises(ConfigError, match="cannot be packed"):
        pack(random_weight(bits, inputs, outputs, 8), bits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("g_idx"), "lacks the tensor g_idx"),
        (lambda p: p.update(g_idx=p["g_idx"].roll(1)), "not contiguous"),
        (lambda p: p["g_idx"].__setitem__(5, 999), "g_idx names group 999, and the layer has .* damaged"),
        (lambda p: p["g_idx"].__setitem__(0, -1), "g_idx names group -1"),
        (lambda p: p.update(g_idx=p["g_idx"] * 0), "not contiguous"),
        (lambda p: p.update(qzeros=p["qzeros"] + 1), "not symmetric"),
        (lambda p: p.update(qweight=p["qweight"][:-1]), "qweight is .* and should be"),
        (lambda p: p.update(qweight=p["qweight"].long()), "qweight is torch.int64"),
        (lambda p: p.update(qzeros=p["qzeros"].T.contiguous()), "qzeros is"),
        (lambda p: p.update(scales=p["scales"].float()), "scales is torch.float32"),
        (lambda p: p.update(scales=p["scales"][:0]), "do not fit together"),
        (lambda p: p.update(scales=p["scales"] * torch.inf), "scale that is not finite"),
    ],
)
def test_foreign_tensors_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    parts = pack(random_weight(4, 96, 64, 32))
    change(parts)
    with pytest.raises(CheckpointError, match=message):
        read_packed({f"{Q}.{name}": part for name, part in parts.items()}, Q)
    with pytest.raises(CheckpointError, match=Q):
        unpack(parts, Q)


def in_bfloat16(checkpoint: Path, out: Path) -> Path:
    """A tiny model in bfloat16, as merge writes it, over several files."""
    source = load_checkpoint(checkpoint)
    out.mkdir()
    write_checkpoint(source, out, "bfloat16")
    (out / "model.safetensors").unlink()
    source.model.save_pretrained(out, max_shard_size="200KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    return out


def in_four_bits(half: Path, out: Path) -> Path:
    """Its text core rounded to four bits in groups of 32."""
    out.mkdir()
    source, scheme = load_checkpoint(half), Scheme(group=32)
    write_quantized(source, quantized_linears(half, scheme), scheme, out)
    return out


@pytest.fixture(scope="module")
def packed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen3-VL, quantized."""
    root = tmp_path_factory.mktemp("packed")
    return in_four_bits(in_bfloat16(tiny_checkpoint, root / "bfloat16"), root / "int4")


def test_whole_groups_in_another_order_are_mended() -> None:
    parts = pack(random_weight(4, 96, 64, 32))
    expected = unpack(parts, Q).dense()
    order = torch.tensor([2, 0, 1])
    # Input k is in group g_idx[k], whose scale stands in that row.
    other = {**parts, "g_idx": order.repeat_interleave(32).int(), "scales": torch.empty_like(parts["scales"])}
    other["scales"][order] = parts["scales"]
    assert torch.equal(unpack(other, Q).dense(), expected)


@pytest.fixture(scope="module")
def half(family_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each family's tiny model in bfloat16."""
    return in_bfloat16(family_checkpoint, tmp_path_factory.mktemp("half") / "bfloat16")


@pytest.fixture(scope="module")
def family_packed(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, quantized."""
    return in_four_bits(half, tmp_path_factory.mktemp("packed") / "int4")


def quantized_linears(path: Path, scheme: Scheme) -> dict[str, QuantizedWeight]:
    model = load_checkpoint(path).model
    every = [linears(model, i) for i in range(len(text_core(model).layers))]
    return {n: round_to_nearest(m.weight.detach(), scheme) for layer in every for n, m in layer.items()}


def all_tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: part for file in path.glob("*.safetensors") for name, part in load_file(file).items()}


def test_a_checkpoint_holds_what_it_held_and_packed_linears(half: Path, family_packed: Path) -> None:
    before, after = all_tensors(half), all_tensors(family_packed)
    module_name = checkpoint_family(half).module_name
    linears = set(quantized_linears(half, Scheme(group=32)))
    # In the spelling of the files that were there.
    names = {n.removesuffix(".weight") for n in before if module_name(n).removesuffix(".weight") in linears}
    assert len(names) == len(linears) == 14
    assert set(after) == {n for n in before if n.removesuffix(".weight") not in names} | {
        f"{name}.{part}" for name in names for part in PACKED
    }
    for name in set(before) & set(after):
        assert torch.equal(before[name], after[name])
        assert before[name].dtype == after[name].dtype
    assert ("lm_head.weight" in after) is ("lm_head.weight" in before)
    assert not any("visual" in name and name.endswith("qweight") for name in after)
    index = json.loads((family_packed / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(name in load_file(family_packed / index[name]) for name in after)
    assert set(index) == set(after)


def test_a_checkpoint_says_how_it_is_quantized_and_keeps_its_files(half: Path, family_packed: Path) -> None:
    config = json.loads((family_packed / "config.json").read_text())
    alone = json.loads((family_packed / "quantize_config.json").read_text())
    assert config.pop("quantization_config") == alone
    assert config == json.loads((half / "config.json").read_text())
    wanted = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}
    assert wanted.items() <= alone.items()
    kept = {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json"}
    template = {path.name for path in half.glob("chat_template.*")}
    assert len(template) == 1
    for name in kept | template:
        assert (family_packed / name).read_bytes() == (half / name).read_bytes()


def test_a_loaded_checkpoint_has_the_weights_that_were_packed(half: Path, family_packed: Path) -> None:
    loaded = load_quantized(family_packed)
    parents = dict(load_checkpoint(half).model.named_parameters())
    weights = quantized_linears(half, Scheme(group=32))
    for name, parameter in loaded.model.named_parameters():
        layer = name.removesuffix(".weight")
        expected = weights[layer].dense() if layer in weights else parents[name]
        assert torch.equal(parameter, expected), name
        assert parameter.dtype == torch.float32
    tied = loaded.model.lm_head.weight is text_core(loaded.model).embed_tokens.weight
    assert tied is loaded.model.config.tie_word_embeddings
    assert not loaded.model.training


def test_a_loaded_checkpoint_scores_as_the_model_rounded_in_place(
    half: Path, family_packed: Path, family_task: Task, synthetic_wafers: list[tuple[WaferMap, str]]
) -> None:
    images = [render(wafer, family_task.render) for wafer, _ in synthetic_wafers[:6]]
    rounded = load_checkpoint(half)
    full = tree_log_probs(rounded, family_task, images)
    round_model(rounded.model, Scheme(group=32))
    expected = tree_log_probs(rounded, family_task, images)
    np.testing.assert_allclose(
        tree_log_probs(load_quantized(family_packed), family_task, images), expected, atol=1e-9
    )
    assert np.abs(full - expected).max() > 1e-4


def test_a_single_file_stays_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    scheme = Scheme(bits=3, group=64)
    weights = quantized_linears(tiny_checkpoint, scheme)
    write_quantized(load_checkpoint(tiny_checkpoint), weights, scheme, tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(load_quantized(tmp_path).model.get_submodule(Q).weight, weights[Q].dense())


def test_a_layer_that_the_source_does_not_hold_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = {"model.language_model.layers.7.mlp.up_proj": random_weight(4, 64, 128, 32)}
    with pytest.raises(CheckpointError, match=r"does not store the weight of .*layers\.7"):
        write_quantized(load_checkpoint(tiny_checkpoint), weights, Scheme(group=32), tmp_path)


def test_biases_are_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    biased = tmp_path / "biased"
    shutil.copytree(tiny_checkpoint, biased)
    config = json.loads((biased / "config.json").read_text())
    config["text_config"]["attention_bias"] = True
    (biased / "config.json").write_text(json.dumps(config))
    shape = Qwen3VLForConditionalGeneration.config_class.from_dict(config)
    model = Qwen3VLForConditionalGeneration(shape).float()
    for name, parameter in model.named_parameters():
        if name.endswith("q_proj.bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(biased)
    out = tmp_path / "out"
    out.mkdir()
    weights = quantized_linears(biased, Scheme(group=32))
    write_quantized(load_checkpoint(biased), weights, Scheme(group=32), out)
    found = load_quantized(out).model.get_submodule(Q)
    assert torch.equal(found.bias, model.get_submodule(Q).bias)
    put(model.get_submodule(Q), weights[Q])
    assert torch.equal(found.weight, model.get_submodule(Q).weight)


def changed(packed: Path, out: Path, **settings: object) -> Path:
    """A copy whose quantization_config says otherwise."""
    shutil.copytree(packed, out)
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] |= settings
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "awq"}, "not a GPTQ checkpoint"),
        ({"checkpoint_format": "gptq_v2"}, "layout 'gptq_v2'"),
        ({"bits": "4"}, "'4' bits"),
        ({"bits": 8}, "do not fit together"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    packed: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_quantized(changed(packed, tmp_path / "other", **settings))


def test_a_full_precision_checkpoint_is_not_taken_for_a_quantized_one(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="not a GPTQ checkpoint"):
        load_quantized(tiny_checkpoint)


def test_a_checkpoint_that_lacks_a_file_or_a_tensor_is_refused(packed: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(packed, gone)
    first = min(gone.glob("*.safetensors"))
    tensors = load_file(first)
    norm = next(name for name in tensors if name.endswith(("norm.weight", "embed_tokens.weight")))
    save_file({name: part for name, part in tensors.items() if name != norm}, first)
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        load_quantized(gone)
    first.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_quantized(gone)
