"""Acceptance: whether the words of an engine come out as those of the bundle's own graphs.

The reference is made where the engine is built, on the CPU at exact accuracy, and lies in its manifest: for
the first golden maps and the task's prompt, twelve times, the eight likeliest tokens, the first of which is
said. An engine is shown what was said, one token after the other on its cache, and must give all eight
log-probabilities within its tolerance of the reference, and no other token one that is higher than the
first's by more than twice that, which is what two distributions allow that are nowhere further apart.

On nano, computed on the CPU, rounding alone moves the eight by at most 0.13 (BF16) and 0.05 (FP16), another
wafer's image by 0.6 to 5 and a blank one by 3 to 10; the likeliest token alone would not show the wrong image
(0.006 and more), since an answer's wording is nearly certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine
from wafervlm.engine_words import GoldenText, WordsVerification
from wafervlm.errors import ManifestError, VerificationError
from wafervlm.golden import read_golden
from wafervlm.render import render
from wafervlm.words.onnx_steps import OnnxSteps
from wafervlm.words.run import Limits, Run
from wafervlm.words.section import Words
from wafervlm.words.steps import Steps
from wafervlm.words.tensorrt_steps import TensorRTSteps, words_of
from wafervlm.words.text import Language, Prompt

MAPS, TOKENS, LIKELIEST = 2, 12, 8

LogProbs = NDArray[np.float64]


def golden_texts(bundle: Bundle, words: Words) -> tuple[GoldenText, ...]:
    """The reference of ``bundle``, by ONNX Runtime on the CPU. Raises what opening that raises."""
    steps = OnnxSteps(bundle, words, accuracy_level=0)
    prompt = Language(bundle, words).prompt(bundle.manifest.task.prompt)
    count = min(TOKENS, words.context - len(prompt.ids))
    return tuple(_spoken(steps, prompt, image, count) for image in _images(bundle))


def accept_words(bundle: Bundle, words: Words, engine: Engine, steps: TensorRTSteps) -> WordsVerification:
    """Have ``steps``, which run ``engine``, read the golden texts. Raises VerificationError where they do not
    come out."""
    engines, tolerance = words_of(engine, bundle), engine.manifest.tolerance
    prompt = Language(bundle, words).prompt(bundle.manifest.task.prompt)
    far, above, agree = [], [], []
    for image, golden in zip(_images(bundle), engines.golden, strict=False):
        read = _rows(steps, prompt, image, golden.said)
        if max(map(max, golden.tokens)) >= steps.vocabulary:
            raise ManifestError(f"engine {engine.path} has golden texts of another bundle; build it again")
        for row, tokens, wanted in zip(read, golden.tokens, golden.log_probs, strict=True):
            far.append(float(np.abs(row[list(tokens)] - wanted).max()))
            above.append(float(row.max() - row[tokens[0]]))
            agree.append(int(row.argmax()) == tokens[0])
    found = WordsVerification(
        features=engines.features.sha256,
        step=engines.step.sha256,
        tokens=len(far),
        max_abs_difference=float(np.max(far)),
        token_agreement=float(np.mean(agree)),
    )
    likelier = float(np.max(above))
    # Written so that a figure that is no number fails too.
    if not (found.max_abs_difference <= tolerance and likelier <= 2 * tolerance):
        raise VerificationError(
            f"the words of engine {engine.path} are not those of its bundle on {steps.place.gpu}: the "
            f"log-probabilities of the likeliest tokens are up to {found.max_abs_difference:.2g} off "
            f"({tolerance:g} allowed), and another token is likelier by up to {likelier:.2g} "
            f"({2 * tolerance:g} allowed); do not use it: build it with --precision fp32, or without "
            "--words, and report it with the output of: wafervlm doctor"
        )
    return found


def _images(bundle: Bundle) -> list[NDArray[np.uint8]]:
    spec = bundle.manifest.task.render
    return [render(wafer, spec)[None] for wafer in read_golden(bundle).maps[:MAPS]]


def _spoken(steps: Steps, prompt: Prompt, image: NDArray[np.uint8], count: int) -> GoldenText:
    """What ``steps`` say in ``count`` tokens, and what else was likely."""
    said: list[int] = []
    tokens, log_probs = [], []
    for row in _rows(steps, prompt, image, said, count):
        best = np.argsort(-row, kind="stable")[:LIKELIEST]
        said.append(int(best[0]))
        tokens.append(tuple(best.tolist()))
        log_probs.append(tuple(row[best].round(6).tolist()))
    return GoldenText(tuple(tokens), tuple(log_probs))


def _rows(
    steps: Steps, prompt: Prompt, image: NDArray[np.uint8], said: Sequence[int], count: int = 0
) -> Iterator[LogProbs]:
    """The log-probabilities (V,) before each of the tokens ``said``, which may grow as they are asked for, to
    ``count``."""
    count = count or len(said)
    reader = steps.read(image, len(prompt.ids) + count, Run(Limits()))
    try:
        ids = np.array(prompt.ids, np.int64)
        yield _log_softmax(reader.step(ids, prompt.positions, prompt.rows))
        for index in range(count - 1):
            yield _log_softmax(reader.word(said[index], prompt.next_position + index))
    finally:
        reader.close()


def _log_softmax(logits: NDArray[np.float32]) -> LogProbs:
    exact = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # what is no number is found where it is compared
        scores: LogProbs = exact - np.logaddexp.reduce(exact)
    return scores
