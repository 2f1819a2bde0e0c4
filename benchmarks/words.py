"""Generated text: tokens a second of a bundle with words against transformers' generate, and equal tokens.

    python -m benchmarks.words bundle/ --reference train/nano/weights/base

Both answer the same questions about the same wafers, greedily, in turns; a call is timed whole, from the
wafer's dies to the last word. The bundle must be of the reference's own weights for tokens to be equal.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.machine import describe_machine
from train.encoding import encode
from train.loading import Checkpoint, load_checkpoint
from train.nano.corpus import turns
from train.synthetic import wafers
from wafervlm import console
from wafervlm.loading import load
from wafervlm.model import WaferVLM
from wafervlm.render import render
from wafervlm.wafermap import WaferMap
from wafervlm.words.question import DESCRIBE_QUESTION

# As nano's base was trained: so many questions in one turn.
QUESTIONS = 3


@dataclass(frozen=True, slots=True)
class Call:
    """One answer: its tokens, and the seconds it took by the clock and of the processor, all its threads
    together. The first token's share is known from a call that ends there."""

    tokens: tuple[int, ...]
    seconds: float
    processor: float


def asked(count: int, seed: int = 7, *, describe: bool = False) -> list[tuple[WaferMap, str]]:
    """``count`` synthetic wafers, each with questions about its dies, or with the one for a description."""
    rng = np.random.default_rng(seed)
    labels = [("Center", "Scratch", "Edge-Ring", "Loc")[i % 4] for i in range(count)]
    shown = wafers(labels, seed=seed)
    if describe:
        return [(wafer, DESCRIBE_QUESTION) for wafer in shown]
    return [(wafer, " ".join(turn.question for turn in turns(wafer.dies, rng, QUESTIONS))) for wafer in shown]


def compare(
    model: WaferVLM, reference: Checkpoint, pairs: Sequence[tuple[WaferMap, str]], max_tokens: int
) -> dict[str, Any]:
    """Ask both all questions, in turns after one to warm up, whole and up to the first token; the figures."""
    calls: dict[tuple[str, int], list[Call]] = defaultdict(list)
    for wafer, question in [pairs[0], *pairs]:
        for limit in (max_tokens, 1):
            calls["ours", limit].append(_timed(_describe, model, wafer, question, limit))
            calls["generate", limit].append(_timed(_generate, model, wafer, question, limit, reference))
    warm = {key: found[1:] for key, found in calls.items()}
    ours, theirs = warm["ours", max_tokens], warm["generate", max_tokens]
    return {
        "answers": len(ours),
        "tokens": sum(len(call.tokens) for call in ours),
        "equal_answers": sum(a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True)),
        "tokens_per_second": _rate(ours, "seconds"),
        "generate_tokens_per_second": _rate(theirs, "seconds"),
        "ratio": _rate(ours, "seconds") / _rate(theirs, "seconds"),
        "ratio_of_processor_time": _rate(ours, "processor") / _rate(theirs, "processor"),
        "ms_per_token_after_the_first": _later(ours, warm["ours", 1]),
        "generate_ms_per_token_after_the_first": _later(theirs, warm["generate", 1]),
    }


def _timed(answer: Callable[..., Sequence[int]], *question: object) -> Call:
    started, before = time.perf_counter(), time.process_time()
    tokens = answer(*question)
    return Call(tuple(tokens), time.perf_counter() - started, time.process_time() - before)


def _describe(model: WaferVLM, wafer: WaferMap, question: str, max_tokens: int) -> tuple[int, ...]:
    return model.describe(wafer, question, max_tokens=max_tokens, check=False).tokens


def _generate(
    model: WaferVLM, wafer: WaferMap, question: str, max_tokens: int, reference: Checkpoint
) -> list[int]:
    task = replace(model.task, prompt=question)
    inputs = encode(reference, task, [render(wafer, task.render)])
    with torch.inference_mode():
        whole = reference.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    tokens: list[int] = whole[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def _rate(calls: Sequence[Call], clock: str) -> float:
    return sum(len(call.tokens) for call in calls) / sum(float(getattr(call, clock)) for call in calls)


def _later(calls: Sequence[Call], first: Sequence[Call]) -> float:
    """Median milliseconds of processor time for each token after the first."""
    spent = [
        1e3 * (call.processor - begun.processor) / (len(call.tokens) - 1)
        for call, begun in zip(calls, first, strict=True)
        if len(call.tokens) > 1
    ]
    return float(np.median(spent)) if spent else 0.0


@click.command(context_settings=console.HELP)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", required=True, type=click.Path(path_type=Path), help="Its checkpoint.")
@click.option("--answers", default=20, show_default=True, help="Wafers asked about.")
@click.option("--describe", is_flag=True, help="Ask for a description, not what nano's base was asked.")
@click.option("--max-tokens", default=256, show_default=True)
@click.option("--threads", default=2, show_default=True)
@console.json_option
def main(
    bundle: Path,
    reference: Path,
    answers: int,
    describe: bool,
    max_tokens: int,
    threads: int,
    as_json: bool,
) -> None:
    """Time generated text against transformers' generate, and count equal answers.

    \b
    Example:
      python -m benchmarks.words bundle/ --reference train/nano/weights/base
    """
    torch.set_num_threads(threads)
    machine = describe_machine(threads)
    with load(bundle, threads=threads) as model:
        pairs = asked(answers, describe=describe)
        figures = compare(model, load_checkpoint(reference), pairs, max_tokens)
    console.result({**figures, "machine": machine}, as_json)


if __name__ == "__main__":
    main()
