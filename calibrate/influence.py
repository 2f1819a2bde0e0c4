"""How much each token of the calibration conversations bears on the answers.

GPTQ makes the outputs of a layer change least, each token counting alike; but most tokens of a wafer map are
image tokens on which, from some layer on, hardly anything depends. To second order the divergence of the
answers' distribution, when the outputs z of a layer change by dz at a token, is half of dzᵀ F dz with F the
Fisher information; weighting each token's share of the Hessian by the trace of its F keeps what matters of
that (as Kim et al., "GuidedQuant: Large Language Model Quantization via Exploiting End Loss Guidance", 2025,
arXiv 2505.07004, do by groups of outputs, on the loss).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from calibrate.inputs import Inputs
from train.progress import track

Influence = Mapping[str, torch.Tensor]
# What descriptions bear together, of what the labels' answers bear: the label is what is judged.
WORDS_SHARE = 0.25
# So that no token is forgotten altogether: a share of the mean weight.
FLOOR = 0.02


def influences(
    model: Any,
    inputs: Sequence[Inputs],
    modules: Mapping[str, torch.nn.Linear],
    answers: Sequence[int],
    seed: int,
) -> list[Influence]:
    """For each of ``inputs``, by name of the linear layers ``modules``, the weight (B, T) float32 of every
    token: an unbiased estimate of the trace of the Fisher information of the answers' next-token
    distributions with respect to the layer's output there.

    Answers begin at token ``answers[i]`` of ``inputs[i]``; with 0 every token is predicted. It is one forward
    and one backward pass of each batch: sum over the vocabulary of +-1 sqrt(p) log p, with random signs, has
    gradients whose expected outer product is the Fisher information.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = list(zip(inputs, answers, strict=True))
    return [_influence(model, part, modules, at, generator) for part, at in track(pairs, "weigh tokens")]


def balanced(influence: Sequence[Influence], first: int, share: float) -> list[Influence]:
    """``influence`` with that of all batches from ``first`` on scaled so that, for every layer, it sums to
    ``share`` of that of the batches before: long answers would else drown short ones."""
    before, after = influence[:first], influence[first:]
    sums = {
        name: (sum(float(part[name].sum()) for part in before), sum(float(p[name].sum()) for p in after))
        for name in influence[0]
    }
    scales = {name: share * one / other if other > 0 else 0.0 for name, (one, other) in sums.items()}
    scaled = [{name: scales[name] * weights for name, weights in part.items()} for part in after]
    return [*before, *scaled]


def token_weights(
    influence: Sequence[Influence], names: Iterable[str], valid: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What the tokens (B, T) of every batch count in the Hessian that the layers ``names`` share: their
    influence on all of these together, a mean of 1 over ``valid`` (B, T) tokens, and at least FLOOR of it."""
    names = list(names)
    together = [torch.stack([part[name] for name in names]).sum(dim=0) for part in influence]
    tokens = sum(int(mask.sum()) for mask in valid)
    mean = sum(float(part[mask].sum()) for part, mask in zip(together, valid, strict=True)) / max(tokens, 1)
    if not mean > 0:
        # Nothing reads the outputs of these layers at all.
        return [torch.ones_like(part) for part in together]
    return [(part / mean + FLOOR) / (1 + FLOOR) for part in together]


def _influence(
    model: Any,
    inputs: Inputs,
    modules: Mapping[str, torch.nn.Linear],
    answer: int,
    generator: torch.Generator,
) -> Influence:
    found: dict[str, torch.Tensor] = {}
    with torch.enable_grad(), _differentiable(model, modules, found):
        logits = model(**inputs, use_cache=False).logits[:, max(answer - 1, 0) : -1].float()
        log_probs = logits.log_softmax(dim=-1)
        drawn = torch.randint(0, 2, log_probs.shape, generator=generator, dtype=torch.int8)
        signs = (2 * drawn - 1).to(log_probs)
        # The mask of what is predicted, not of what predicts: padding stands at the end.
        predicted = inputs["attention_mask"][:, max(answer, 1) :].to(log_probs)
        terms = (signs * log_probs.detach().mul(0.5).exp() * log_probs).sum(dim=-1)
        (terms * predicted).sum().backward()
    blank = torch.zeros(inputs["input_ids"].shape)
    return {name: found.get(name, blank) for name in modules}


@contextmanager
def _differentiable(
    model: Any, modules: Mapping[str, torch.nn.Linear], found: dict[str, torch.Tensor]
) -> Any:
    """Let gradients flow from the embeddings on, through frozen weights, and catch their squares."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def keep(name: str, gradient: torch.Tensor) -> None:
        found[name] = gradient.float().square().sum(dim=-1).cpu()

    def catch(name: str, _: Any, __: Any, output: torch.Tensor) -> None:
        output.register_hook(partial(keep, name))

    def begin(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_()

    hooks = [module.register_forward_hook(partial(catch, name)) for name, module in modules.items()]
    hooks.append(model.get_input_embeddings().register_forward_hook(begin))
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in trainable:
            parameter.requires_grad_(True)
