"""Verification: whether the golden maps' scores come out on this machine, of a bundle and of an engine.

An engine may be used only where they do.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wafervlm.answers import same
from wafervlm.bundle import Bundle, open_bundle
from wafervlm.engine import Engine, now, open_engine, verify_command
from wafervlm.engine_manifest import Place, Verification
from wafervlm.engine_words import WordsVerification
from wafervlm.errors import DigestError, UsageError, VerificationError
from wafervlm.golden import Golden, check_deployed, read_golden
from wafervlm.model import WaferVLM
from wafervlm.render import render
from wafervlm.runtimes import open_runtime
from wafervlm.runtimes.tensorrt_loading import find_place

log = logging.getLogger(__name__)

EXACT_LEVEL, EXACT_TOLERANCE = 0, 1e-3

AGREEMENT = 0.9
PROBABILITY_TOLERANCE = 0.05
_DIGEST = re.compile(r"[0-9a-fA-F]{12,64}")


def verify(
    bundle: str | Path | Bundle | None = None,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    engine: str | Path | None = None,
    runtime_cache: str | Path | None = None,
    digest: str | None = None,
) -> dict[str, Any]:
    """Run the bundle's golden maps on this machine and compare with the scores of the checkpoint.

    At exact accuracy every label log-probability must lie within 1e-3 of the reference; as deployed,
    within the manifest's ``verify_tolerance``. A graph whose vision tower computes in integers has no exact
    form: it is verified as deployed alone. ``runtime`` is one that runs the graph itself: "onnx" (also where
    None), "onnx-cuda" or "openvino". With ``engine`` they run on that engine alone, within its own
    tolerance, and what came out is kept in its folder, where it can be written ("recorded"), so that ``load``
    takes it from then on. ``digest`` is the bundle's as it was noted where it was exported, or its first 12
    digits or more. Returns the figures as plain values. Raises VerificationError where they do not come out,
    DigestError where the digest is another, and what ``load`` raises.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if digest is not None:
        _check_digest(opened, digest)
    check_deployed(opened)
    if engine is not None:
        if runtime not in (None, "tensorrt"):
            raise UsageError(f"an engine is verified on runtime 'tensorrt' alone, and runtime is {runtime!r}")
        cache = None if runtime_cache is None else Path(runtime_cache)
        found, recorded = verify_engine(opened, open_engine(engine, opened), runtime_cache=cache)
        return {"bundle": opened.digest, "recorded": recorded, **found.to_dict()}
    if runtime_cache is not None or runtime == "auto":
        raise UsageError(
            "without an engine a bundle is verified on one runtime, which must be named, and no runtime "
            "cache is kept; leave 'auto' and the cache out"
        )
    golden = read_golden(opened)
    graph = opened.manifest.graph
    levels = {"deployed": (graph.accuracy_level, opened.manifest.verify_tolerance)}
    if graph.vision == "float32":
        levels = {"exact": (EXACT_LEVEL, EXACT_TOLERANCE), **levels}
    on = runtime or "onnx"
    report: dict[str, Any] = {"bundle": opened.digest, "runtime": on, "maps": len(golden.maps)}
    for name, (level, tolerance) in levels.items():
        ready = open_runtime(on, opened, threads=threads, accuracy_level=level)
        with WaferVLM(opened, ready) as model:
            report[name] = {"accuracy_level": level, "tolerance": tolerance, **_compare(model, golden)}
    for name in levels:
        far, tolerance = report[name]["max_abs_difference"], report[name]["tolerance"]
        if far > tolerance:
            raise VerificationError(
                f"bundle {opened.path} does not reproduce its golden maps here on {on}, {name}: label "
                f"log-probabilities are {far:.2g} off where {tolerance:g} is allowed; report it with the "
                "output of: wafervlm doctor"
            )
    return report


def _check_digest(bundle: Bundle, digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"digest {digest!r} is none: it must be 12 to 64 hex digits, as export prints them")
    if not bundle.digest.startswith(digest.lower()):
        raise DigestError(
            f"bundle {bundle.path} has digest {bundle.digest} and not {digest}: it is another bundle, or its "
            "manifest was changed; copy it again from where it was exported"
        )


def _compare(model: WaferVLM, golden: Golden) -> dict[str, float]:
    images = np.stack([render(wafer, model.task.render) for wafer in golden.maps])
    scores = model.label_log_probs(images)
    return {
        "max_abs_difference": float(np.abs(scores - golden.reference).max()),
        "label_agreement": float(same(model.task, scores, golden.reference).mean()),
    }


def accept(model: WaferVLM, golden: Golden, engine: Engine, place: Place) -> Verification:
    """Run the golden maps through ``model``, which runs ``engine`` at ``place``, together and one by one.

    Label log-probabilities must lie within the engine's tolerance of the checkpoint's, probabilities within
    0.05, and nine labels in ten be the same. Raises VerificationError otherwise.
    """
    images = np.stack([render(wafer, model.task.render) for wafer in golden.maps])
    # Each batch size may get kernels of its own, and one wafer is what is asked most.
    single = [model.label_log_probs(image[None]) for image in images]
    scores = np.stack([model.label_log_probs(images), np.concatenate(single)])
    reference = golden.reference
    found = Verification(
        engine=engine.manifest.file.sha256,
        place=place,
        maps=len(golden.maps),
        max_abs_difference=float(np.abs(scores - reference).max()),
        max_probability_difference=float(np.abs(np.exp(scores) - np.exp(reference)).max()),
        label_agreement=float(same(model.task, scores, reference).mean(axis=1).min()),
        tolerance=engine.manifest.tolerance,
        created=now(),
    )
    good = (
        found.max_abs_difference <= found.tolerance
        and found.max_probability_difference <= PROBABILITY_TOLERANCE
        and found.label_agreement >= AGREEMENT
    )
    if not good:
        raise VerificationError(
            f"engine {engine.path} does not reproduce the golden maps of its bundle on {place.gpu}: label "
            f"log-probabilities are up to {found.max_abs_difference:.2g} off ({found.tolerance:g} allowed), "
            f"probabilities {found.max_probability_difference:.2g} ({PROBABILITY_TOLERANCE:g} allowed), and "
            f"{found.label_agreement:.0%} of labels agree; do not use it: build it with --precision fp32, or "
            "predict with --runtime onnx, and report it with the output of: wafervlm doctor"
        )
    return found


def needs_verification(engine: Engine, bundle: Bundle) -> bool:
    """Whether ``engine`` must run the golden maps before its first answer in this process.

    An engine in a folder that can be written is verified once, by ``wafervlm verify``, and refused with
    VerificationError until then. In one that cannot nothing can be kept, so each start verifies it.
    """
    place = find_place(engine, bundle)
    if engine.verified_at(place):
        return False
    if engine.is_writable:
        raise VerificationError(
            f"engine {engine.path} has not reproduced the golden maps on {place.gpu} here (driver for CUDA "
            f"{place.driver}); before its first use run: {verify_command(engine.path, bundle.path)}"
        )
    log.info("engine folder %s is read-only: the golden maps run at each start", engine.path)
    return True


def verify_engine(
    bundle: Bundle, engine: Engine, *, runtime_cache: Path | None = None
) -> tuple[Verification, bool]:
    """Run the golden maps on ``engine`` here, and its golden texts where it has words, and keep what came out
    beside it; False where its folder cannot be written. Raises VerificationError, and what opening the engine
    raises."""
    golden = read_golden(bundle)
    place = find_place(engine, bundle)
    runtime = open_runtime("tensorrt", bundle, engine=engine, runtime_cache=runtime_cache)
    with WaferVLM(bundle, runtime) as model:
        found = accept(model, golden, engine, place)
    if engine.manifest.words is not None:
        found = replace(found, words=_verify_words(bundle, engine, runtime_cache))
    return found, engine.record(found)


def _verify_words(bundle: Bundle, engine: Engine, runtime_cache: Path | None) -> WordsVerification:
    from wafervlm.words.acceptance import accept_words
    from wafervlm.words.opening import words_section_of
    from wafervlm.words.tensorrt_steps import TensorRTSteps

    words = words_section_of(bundle)
    steps = TensorRTSteps(bundle, words, engine, runtime_cache=runtime_cache)
    try:
        return accept_words(bundle, words, engine, steps)
    finally:
        steps.close()
