"""Decoder layers one after the other: what is quantized with what, and what is measured."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrate.gptq import Hessian, Scheme, gptq, layer_error, round_to_nearest
from calibrate.inputs import Inputs
from calibrate.layers import advance, linears, quantize_layer, quantize_model, round_model, shared_inputs
from calibrate.partial import Partial
from calibrate.replay import begin, text_core
from train.artefact import Provenance
from train.loading import Checkpoint
from wafervlm.errors import ConfigError

SCHEME = Scheme(group=32, precision="float64")
LAYER = "model.language_model.layers"


def caught_inputs(checkpoint: Checkpoint, name: str, inputs: list[Inputs]) -> torch.Tensor:
    """What linear layer ``name`` gets in the model's full forward, (tokens, K), without padding."""
    found = []
    for part in inputs:
        module, valid = checkpoint.model.get_submodule(name), part["attention_mask"].bool()
        hook = module.register_forward_pre_hook(lambda _, args, valid=valid: found.append(args[0][valid]))
        with torch.no_grad():
            checkpoint.model(**part)
        hook.remove()
    return torch.cat(found)


def test_layers_that_read_one_input_are_found(family_model: Checkpoint, family_inputs: list[Inputs]) -> None:
    groups = shared_inputs(family_model.model, 1, begin(family_model.model, family_inputs[0]))
    short = [[name.rpartition(".")[2] for name in names] for names in groups]
    assert short == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert all(name.startswith(f"{LAYER}.1.") for names in groups for name in names)


def test_only_the_decoder_is_quantized(family_model: Checkpoint, family_inputs: list[Inputs]) -> None:
    before = copy.deepcopy(family_model.model.state_dict())
    whole = quantize_model(family_model.model, family_inputs, SCHEME)
    assert len(whole.weights) == len(whole.rows) == 14
    for name, tensor in family_model.model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in whole.weights:
            assert torch.equal(tensor, whole.weights[layer].dense())
            assert not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name]), name


def test_each_set_is_calibrated_on_what_those_before_it_give(
    checkpoint: Checkpoint, inputs: list[Inputs]
) -> None:
    """Replayed by hand with full forwards: the second layer's MLP, after all that comes before it."""
    quantized = copy.deepcopy(checkpoint.model)
    whole = quantize_model(quantized, inputs, SCHEME)
    sets = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["self_attn.o_proj"]]
    sets += [["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]
    for names in [[f"{LAYER}.{i}.{name}" for name in names] for i in (0, 1) for names in sets]:
        hessian = Hessian(checkpoint.model.get_submodule(names[0]).in_features, dtype=torch.float64)
        hessian.add(caught_inputs(checkpoint, names[0], inputs))
        for name in names:
            weight = checkpoint.model.get_submodule(name).weight
            expected = gptq(weight.detach(), hessian.matrix, SCHEME)
            assert (expected.levels == whole.weights[name].levels).float().mean() > 0.999
            with torch.no_grad():
                weight.copy_(whole.weights[name].dense())


def test_errors_are_measured_and_below_rounding(
    family_model: Checkpoint, family_inputs: list[Inputs]
) -> None:
    parent = copy.deepcopy(family_model.model)
    batches = [begin(family_model.model, part) for part in family_inputs]
    done = quantize_layer(family_model.model, 0, batches, SCHEME)
    assert all(0 < row["error"] < 0.8 * row["error_nearest"] for row in done.rows)
    name = f"{LAYER}.0.self_attn.v_proj"
    row = next(row for row in done.rows if row["layer"] == name)
    seen = caught_inputs(family_model, name, family_inputs).double()
    weight = parent.get_submodule(name).weight.detach()
    for key, found in (("error", done.weights[name]), ("error_nearest", round_to_nearest(weight, SCHEME))):
        np.testing.assert_allclose(row[key], layer_error(weight, found.dense(), seen.T @ seen), rtol=1e-6)
    assert row["tokens"] == len(seen) == sum(int(part["attention_mask"].sum()) for part in family_inputs)


def test_largest_values_are_those_of_the_quantized_model(
    checkpoint: Checkpoint, inputs: list[Inputs]
) -> None:
    rows = {row["layer"]: row for row in quantize_model(checkpoint.model, inputs, SCHEME).rows}
    for name in (f"{LAYER}.0.self_attn.o_proj", f"{LAYER}.1.mlp.down_proj"):
        seen = caught_inputs(checkpoint, name, inputs)
        given = checkpoint.model.get_submodule(name)(seen)
        np.testing.assert_allclose(rows[name]["absolute_maximum"], seen.abs().max().item(), rtol=1e-6)
        np.testing.assert_allclose(rows[name]["output_absolute_maximum"], given.abs().max().item(), rtol=1e-5)
    after = caught_inputs(checkpoint, "model.language_model.norm", inputs)
    np.testing.assert_allclose(
        rows[f"{LAYER}.1.mlp.down_proj"]["hidden_absolute_maximum"], after.abs().max().item(), rtol=1e-6
    )


def test_padding_counts_nowhere(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    longer = {key: value.clone() for key, value in inputs[0].items()}
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        longer[key] = torch.nn.functional.pad(longer[key], (0, 9), value=0)
    longer["input_ids"][:, -9:] = checkpoint.tokenizer.pad_token_id
    other = copy.deepcopy(checkpoint.model)
    plain = quantize_model(checkpoint.model, inputs[:1], SCHEME)
    padded = quantize_model(other, [longer], SCHEME)
    for name, weight in plain.weights.items():
        assert (weight.levels == padded.weights[name].levels).float().mean() > 0.999
    for row, twin in zip(plain.rows, padded.rows, strict=True):
        assert row["tokens"] == twin["tokens"]
        np.testing.assert_allclose(row["absolute_maximum"], twin["absolute_maximum"], rtol=1e-4)


def test_batch_size_does_not_matter(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    other = copy.deepcopy(checkpoint.model)
    singles = [
        {
            "input_ids": part["input_ids"][i : i + 1],
            "attention_mask": part["attention_mask"][i : i + 1],
            "mm_token_type_ids": part["mm_token_type_ids"][i : i + 1],
            "image_grid_thw": part["image_grid_thw"][i : i + 1],
            "pixel_values": part["pixel_values"].chunk(len(part["input_ids"]))[i],
        }
        for part in inputs
        for i in range(len(part["input_ids"]))
    ]
    together = quantize_model(checkpoint.model, inputs, SCHEME)
    apart = quantize_model(other, singles, SCHEME)
    for name, weight in together.weights.items():
        assert (weight.levels == apart.weights[name].levels).float().mean() > 0.999
        torch.testing.assert_close(weight.scales, apart.weights[name].scales, rtol=0.03, atol=0)


def test_finished_layers_are_taken_as_they_are(
    checkpoint: Checkpoint, inputs: list[Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other = copy.deepcopy(checkpoint.model), copy.deepcopy(checkpoint.model)
    expected = quantize_model(whole, inputs, SCHEME)
    kept = Partial(tmp_path / "out", Provenance("calibrate"))
    first = {name: weight for name, weight in expected.weights.items() if f"{LAYER}.0." in name}
    kept.keep(0, first, [row for row in expected.rows if row["layer"] in first])
    done: list[int] = []

    def counting(model: object, index: int, *rest: object) -> object:
        done.append(index)
        return quantize_layer(model, index, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("calibrate.layers.quantize_layer", counting)
    resumed = quantize_model(other, inputs, SCHEME, kept)
    assert done == [1]
    assert resumed.rows == expected.rows
    for name, weight in expected.weights.items():
        assert torch.equal(weight.levels, resumed.weights[name].levels)
        assert torch.equal(weight.scales, resumed.weights[name].scales)


def test_rounding_in_place_is_rounding(checkpoint: Checkpoint) -> None:
    parent = copy.deepcopy(checkpoint.model)
    round_model(checkpoint.model, SCHEME)
    for index in range(len(text_core(parent).layers)):
        for name, module in linears(parent, index).items():
            expected = round_to_nearest(module.weight.detach(), SCHEME).dense()
            assert torch.equal(checkpoint.model.get_submodule(name).weight, expected)


def test_advance_gives_what_the_next_layer_gets(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    batch = begin(checkpoint.model, inputs[0])
    advance(checkpoint.model, 0, [batch])
    seen = caught_inputs(checkpoint, f"{LAYER}.1.input_layernorm", inputs[:1])
    torch.testing.assert_close(batch.hidden[batch.valid], seen, rtol=0, atol=1e-6)


def test_groups_that_do_not_divide_name_the_layer(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.q_proj has 64 inputs"):
        quantize_model(checkpoint.model, inputs, Scheme(group=128))
