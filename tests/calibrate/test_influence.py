"""What tokens bear on the answers: against the exact Fisher information, and what it leaves out."""

from __future__ import annotations

import pytest
import torch

from calibrate.gptq import Hessian
from calibrate.influence import FLOOR, balanced, influences, token_weights
from calibrate.inputs import Inputs, batches
from calibrate.layers import linears
from calibrate.replay import text_core
from train.dataset import Sample
from train.loading import Checkpoint
from wafervlm.task import Task


@pytest.fixture
def one(checkpoint: Checkpoint, tiny_task: Task, samples: list[Sample]) -> Inputs:
    """One conversation."""
    return batches(checkpoint, tiny_task, samples[:1], "wafers", 1, seed=0)[0]


def exact_traces(model: torch.nn.Module, inputs: Inputs, name: str, answer: int) -> torch.Tensor:
    """Trace of the Fisher information (T,) of the distributions from token ``answer`` on with respect to the
    output of the layer ``name``: the sum of p |grad log p|^2, one backward pass for each token of each."""
    found = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output))
    log_probs = model(**inputs, use_cache=False).logits[0, answer - 1 : -1].log_softmax(dim=-1).flatten()
    hook.remove()
    one_each = torch.eye(len(log_probs))
    (gradients,) = torch.autograd.grad(log_probs, found, one_each, is_grads_batched=True)
    return (gradients[:, 0].square().sum(dim=-1) * log_probs.detach().exp()[:, None]).sum(dim=0)


@pytest.mark.parametrize("name", ["0.self_attn.v_proj", "1.mlp.down_proj"])
def test_the_estimate_is_the_trace_of_the_fisher_information(
    checkpoint: Checkpoint, one: Inputs, name: str
) -> None:
    model, full = checkpoint.model, f"model.language_model.layers.{name}"
    answer = one["input_ids"].shape[1] - 3
    exact = exact_traces(model, one, full, answer)
    modules = {full: model.get_submodule(full)}
    drawn = [influences(model, [one], modules, [answer], seed)[0][full][0] for seed in range(150)]
    mean, spread = torch.stack(drawn).mean(dim=0), torch.stack(drawn).std(dim=0) / 150**0.5
    assert (mean - exact).abs().sum() < 0.1 * exact.sum()
    assert ((mean - exact).abs() <= 5 * spread + 1e-9).all()


def test_tokens_that_nothing_reads_have_no_influence(checkpoint: Checkpoint, inputs: list[Inputs]) -> None:
    model, last = checkpoint.model, "model.language_model.layers.1.mlp.down_proj"
    answer = inputs[0]["input_ids"].shape[1] - 6
    found = influences(model, inputs, {last: model.get_submodule(last)}, [answer] * len(inputs), seed=0)
    for part, weights in zip(inputs, (of[last] for of in found), strict=True):
        assert weights.shape == part["input_ids"].shape
        assert not weights[:, : answer - 1].any()
        assert torch.equal(weights[:, answer - 1] > 0, part["attention_mask"][:, answer] > 0)
        assert not weights[part["attention_mask"] == 0].any()


def test_the_model_is_left_as_it_was(checkpoint: Checkpoint, one: Inputs) -> None:
    model = checkpoint.model
    before = [parameter.requires_grad for parameter in model.parameters()]
    influences(model, [one], linears(model, 0), [5], seed=0)
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not [m for m in hooks if m in linears(model, 0).values() or m is model.get_input_embeddings()]


def test_weights_have_a_mean_of_one_over_what_is_no_padding() -> None:
    valid = [torch.tensor([[1, 1, 1, 0]]).bool(), torch.tensor([[1, 1, 0, 0]]).bool()]
    influence = [
        {"q": torch.tensor([[4.0, 0, 0, 0]]), "k": torch.tensor([[1.0, 0, 0, 0]])},
        {"q": torch.tensor([[0.0, 0, 0, 0]]), "k": torch.tensor([[0.0, 5, 0, 0]])},
    ]
    weights = token_weights(influence, ["q", "k"], valid)
    kept = torch.cat([part[mask] for part, mask in zip(weights, valid, strict=True)])
    assert float(kept.mean()) == pytest.approx(1)
    assert float(kept.min()) == pytest.approx(FLOOR / (1 + FLOOR))
    assert float(kept[0]) == float(kept[-1]) == float(kept.max())


def test_without_any_influence_all_tokens_count_alike() -> None:
    weights = token_weights([{"q": torch.zeros(1, 3)}], ["q"], [torch.ones(1, 3).bool()])
    assert torch.equal(weights[0], torch.ones(1, 3))


def test_a_weighted_hessian_is_that_of_tokens_repeated() -> None:
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([3, 0, 1, 2])
    weighted, repeated = Hessian(8), Hessian(8)
    weighted.add(rows, counts.float())
    repeated.add(rows.repeat_interleave(counts, dim=0))
    torch.testing.assert_close(weighted.matrix, repeated.matrix)


def test_every_decoder_layer_has_its_weights(checkpoint: Checkpoint, one: Inputs) -> None:
    model = checkpoint.model
    modules = {n: m for i in range(len(text_core(model).layers)) for n, m in linears(model, i).items()}
    found = influences(model, [one], modules, [5], seed=0)[0]
    assert set(found) == set(modules)
    assert all(float(weights.sum()) > 0 for weights in found.values())


def test_long_answers_do_not_drown_short_ones() -> None:
    short = [{"a": torch.ones(2, 5), "b": torch.zeros(2, 5)}] * 2
    long = [{"a": torch.full((3, 50), 4.0), "b": torch.ones(3, 50)}]
    found = balanced([*short, *long], 2, 0.25)
    assert found[:2] == short
    assert float(found[2]["a"].sum()) == pytest.approx(0.25 * 20)
    assert float(found[2]["b"].sum()) == 0
