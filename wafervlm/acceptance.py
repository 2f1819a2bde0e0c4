"""Whether an engine may be used on this machine: the golden maps' scores must come out of it first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine, now, verify_command
from wafervlm.engine_manifest import Place, Verification
from wafervlm.errors import VerificationError
from wafervlm.golden import Golden, read_golden
from wafervlm.render import render
from wafervlm.runtimes import open_runtime
from wafervlm.runtimes.tensorrt import find_place

if TYPE_CHECKING:
    from wafervlm.model import WaferVLM

log = logging.getLogger(__name__)

AGREEMENT = 0.9
PROBABILITY_TOLERANCE = 0.05


def accept(model: WaferVLM, golden: Golden, engine: Engine, place: Place) -> Verification:
    """Run the golden maps through ``model``, which runs ``engine`` at ``place``.

    Label log-probabilities must lie within the engine's tolerance of the checkpoint's, probabilities within
    0.05, and nine labels in ten be the same. Raises VerificationError otherwise.
    """
    images = np.stack([render(wafer, model.task.render) for wafer in golden.maps])
    scores = model.label_log_probs(images)
    reference = golden.reference
    found = Verification(
        engine=engine.manifest.file.sha256,
        place=place,
        maps=len(golden.maps),
        max_abs_difference=float(np.abs(scores - reference).max()),
        max_probability_difference=float(np.abs(np.exp(scores) - np.exp(reference)).max()),
        label_agreement=float((scores.argmax(1) == reference.argmax(1)).mean()),
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
    """Run the golden maps on ``engine`` here and keep what came out beside it; False where its folder cannot
    be written. Raises VerificationError, and what opening the engine raises."""
    from wafervlm.model import WaferVLM

    golden = read_golden(bundle)
    place = find_place(engine, bundle)
    runtime = open_runtime("tensorrt", bundle, engine=engine, runtime_cache=runtime_cache)
    with WaferVLM(bundle, runtime) as model:
        found = accept(model, golden, engine, place)
    return found, engine.record(found)
