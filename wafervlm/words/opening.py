"""Opening what generates text: on ONNX Runtime, or the words of an engine."""

from __future__ import annotations

import logging
from pathlib import Path

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine, verify_command
from wafervlm.errors import SetupError, UsageError, VerificationError
from wafervlm.runtimes import usable
from wafervlm.words.onnx_steps import OnnxSteps
from wafervlm.words.section import Words
from wafervlm.words.steps import Steps
from wafervlm.words.stream import Speaker

log = logging.getLogger(__name__)


def open_speaker(
    bundle: Bundle,
    runtime: str,
    *,
    device: str = "cpu",
    threads: int | None = None,
    engine: Engine | None = None,
    runtime_cache: Path | None = None,
) -> Speaker:
    """Make ``bundle`` ready to generate text on ``runtime``: onnx (on ``device``), onnx-cuda, or tensorrt,
    which runs the words of ``engine``. OpenVINO has no part in it: onnx stands in for it, and the
    description says so.

    Raises UsageError for a bundle or an engine without words, VerificationError for an engine whose words did
    not come out here, and what opening a runtime raises.
    """
    words = words_section_of(bundle)
    steps: Steps
    if runtime == "tensorrt":
        steps = _open_engine(bundle, words, engine, runtime_cache)
    else:
        where = "cuda" if runtime == "onnx-cuda" else device
        steps = OnnxSteps(bundle, words, device=where, threads=threads)
    return Speaker(bundle, words, steps)


def words_section_of(bundle: Bundle) -> Words:
    """What ``bundle`` says of its words. Raises UsageError where it has none."""
    if bundle.manifest.words is None:
        raise UsageError(
            f"bundle {bundle.manifest.name!r} answers only the question it was made for: it was exported "
            "without words; take one that was made with: wafervlm export --words"
        )
    return bundle.manifest.words


def choose_words_runtime(bundle: Bundle, engine: Engine | None) -> tuple[str, str]:
    """What ``auto`` stands for where text is generated, and why: the engine where it has words and can run
    here, else ONNX Runtime on the GPU where it has it, else on the CPU. Nothing is opened."""
    reasons: list[str] = []
    for name in ("tensorrt", "onnx-cuda"):
        try:
            if name == "tensorrt" and engine is not None:
                from wafervlm.words.tensorrt_steps import words_of

                words_of(engine, bundle)
            return name, "; ".join([*reasons, usable(name, bundle, engine)])
        except (SetupError, UsageError) as error:
            reasons.append(f"not {name}: {error}")
    return "onnx", "; ".join(reasons)


def _open_engine(bundle: Bundle, words: Words, engine: Engine | None, runtime_cache: Path | None) -> Steps:
    from wafervlm.runtimes.tensorrt_loading import find_place
    from wafervlm.words.acceptance import accept_words
    from wafervlm.words.tensorrt_steps import TensorRTSteps, words_of

    if engine is None:
        from wafervlm.engine import build_command

        raise UsageError(
            "runtime 'tensorrt' runs an engine, and none is named; name one (--engine), or build it: "
            + build_command(Path("ENGINE"), bundle.path, words=True)
        )
    words_of(engine, bundle)
    place = find_place(engine, bundle)
    known = engine.words_verified_at(place) is not None
    if not known and engine.is_writable:
        raise VerificationError(
            f"the words of engine {engine.path} have not come out on {place.gpu} here (driver for CUDA "
            f"{place.driver}); before their first use run: {verify_command(engine.path, bundle.path)}"
        )
    steps = TensorRTSteps(bundle, words, engine, runtime_cache=runtime_cache)
    if not known:
        log.info("engine folder %s is read-only: the golden texts run at each start", engine.path)
        try:
            accept_words(bundle, words, engine, steps)
        except BaseException:
            steps.close()
            raise
    return steps
