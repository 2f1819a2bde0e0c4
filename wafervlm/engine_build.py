"""Building an engine folder: found where one stands that is what is asked for, else made whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from wafervlm import console
from wafervlm.bundle import MANIFEST, Bundle, FileEntry
from wafervlm.engine import Engine, now, read_manifest, write_engine_manifest, write_file, writing_engine
from wafervlm.engine_manifest import ENGINE_FILE, EngineManifest, Verification
from wafervlm.engine_words import FEATURES_ENGINE, STEP_ENGINE, WordsEngines
from wafervlm.errors import IntegrityError, UsageError
from wafervlm.runtimes.tensorrt_build import Report, build_engine
from wafervlm.runtimes.tensorrt_loading import find_place
from wafervlm.runtimes.tensorrt_target import Target
from wafervlm.words.acceptance import golden_texts
from wafervlm.words.opening import words_section_of
from wafervlm.words.tensorrt_build import build_features, build_step

SECONDS_BETWEEN_NOTES = 5.0


def draft_of(
    bundle: Bundle,
    target: Target,
    *,
    precision: str,
    max_batch: int,
    max_prompt: int | None,
    tolerance: float,
) -> EngineManifest:
    """The manifest but for what is known once the engine is built; ``max_prompt`` None: without words."""
    words = None
    if max_prompt is not None:
        context = words_section_of(bundle).context
        words = WordsEngines(_unknown(FEATURES_ENGINE), _unknown(STEP_ENGINE), max_prompt, context, ())
    return EngineManifest(
        bundle=bundle.digest,
        bundle_name=bundle.manifest.name,
        task_digest=bundle.manifest.task_digest,
        created=now(),
        builder=target.library.name,
        builder_version=target.library.version,
        compute_capabilities=target.compute_capabilities,
        precision=precision,
        weights=bundle.manifest.graph.precision,
        max_batch=max_batch,
        tolerance=tolerance,
        file=_unknown(ENGINE_FILE),
        gpu=target.gpu.name if target.gpu else None,
        driver=target.gpu.driver if target.gpu else None,
        words=words,
    )


def found_or_built(
    bundle: Bundle, target: Target, draft: EngineManifest, out: Path, *, replacing: bool = False
) -> EngineManifest:
    """The manifest of the engine in ``out``, built where nothing stands there; another engine than what is
    asked for, or a damaged one, only gives way with ``replacing``. Where the GPU is here the golden maps have
    come out of it, and ``verification`` says so. Raises UsageError."""
    standing = _standing(out, draft)
    if standing is None:
        if not replacing:
            check_free(out, draft)
        return _build(bundle, target, draft, out)
    console.say(f"{out} is complete and of this bundle already; it is not built again")
    if target.gpu is None:
        return standing
    # It may have been built ahead of time, or on another GPU of this compute capability.
    engine = Engine(out, standing)
    place = find_place(engine, bundle)
    known = engine.verified_at(place)
    if standing.words is not None and engine.words_verified_at(place) is None:
        known = None
    return replace(standing, verification=known or _verify(bundle, engine))


def check_free(out: Path, draft: EngineManifest) -> None:
    """Refuse to build where an engine stands. Raises UsageError, which says in what it is another one."""
    if not (out / MANIFEST).exists():
        return
    try:
        differs = draft.differences(read_manifest(out))
        what = f"another engine ({', '.join(differs)})" if differs else "an engine that is damaged"
    except IntegrityError:
        what = "an engine that is damaged"
    raise UsageError(
        f"{out} holds {what}; choose another folder, or put this one in its place with --replace"
    )


def report_lines(out: Path, manifest: EngineManifest, seconds: float) -> Iterator[str]:
    """What stands in ``out`` after so many ``seconds``, in words."""
    size = sum(entry.size for entry in manifest.files) / 1e6
    yield f"engine {out}: {size:.1f} MB in {seconds:.1f} s"
    for entry in manifest.files:
        yield f"  {entry.path}  {entry.size / 1e6:.1f} MB  sha256 {entry.sha256}"
    found = manifest.verification
    if found is not None:
        yield (
            f"golden maps on {found.place.gpu}: label log-probabilities up to {found.max_abs_difference:.2g} "
            f"off ({found.tolerance:g} allowed), the same answer on {found.label_agreement:.0%} of the maps"
        )


def _standing(out: Path, draft: EngineManifest) -> EngineManifest | None:
    """The manifest of the engine that stands in ``out`` and is what is asked for, if one does."""
    if not (out / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(out)
        if not draft.made_like(manifest):
            return None
        for entry in manifest.files:
            Engine(out, manifest).read(entry)
    except IntegrityError:
        return None
    return manifest


def _build(bundle: Bundle, target: Target, draft: EngineManifest, out: Path) -> EngineManifest:
    """Build the engine and write its folder, whole and only where the golden maps come out."""
    with writing_engine(out) as work:
        # The words first: what they lack here is known before the long part.
        words = None if draft.words is None else _build_words(bundle, target, draft, draft.words, work)
        with _notes("classification") as report:
            data = build_engine(
                bundle, target, precision=draft.precision, max_batch=draft.max_batch, report=report
            )
        console.say(f"writing {data.nbytes / 1e6:.1f} MB")
        manifest = replace(draft, file=write_file(work, data), words=words)
        del data
        write_engine_manifest(work, manifest)
        if target.gpu is not None:
            manifest = replace(manifest, verification=_verify(bundle, Engine(work, manifest)))
            write_engine_manifest(work, manifest)
    return manifest


def _build_words(
    bundle: Bundle, target: Target, draft: EngineManifest, wanted: WordsEngines, work: Path
) -> WordsEngines:
    section = words_section_of(bundle)
    console.say("describing golden maps on the CPU, for reference")
    golden = golden_texts(bundle, section)
    with _notes("words, vision") as report:
        data = build_features(bundle, section, target, precision=draft.precision, report=report)
    features = write_file(work, data, FEATURES_ENGINE)
    del data
    with _notes("words, text") as report:
        data = build_step(
            bundle,
            section,
            target,
            precision=draft.precision,
            max_prompt=wanted.max_prompt,
            report=report,
        )
    console.say(f"writing {(features.size + data.nbytes) / 1e6:.1f} MB of words")
    return replace(wanted, features=features, step=write_file(work, data, STEP_ENGINE), golden=golden)


def _verify(bundle: Bundle, engine: Engine) -> Verification:
    from wafervlm.verification import verify_engine

    console.say("running the golden maps")
    return verify_engine(bundle, engine)[0]


def _unknown(name: str) -> FileEntry:
    return FileEntry(name, "0" * 64, 0)


@contextmanager
def _notes(what: str) -> Iterator[Report]:
    """Say every five seconds how far the build is: TensorRT tells its phases and steps, and not how long they
    will take."""
    started = time.monotonic()
    state = ["reading the graph"]
    done = threading.Event()

    def report(phase: str, step: int, steps: int) -> None:
        state[0] = f"{phase.lower()}, step {step} of {steps}" if steps > 1 else phase.lower()

    def beat() -> None:
        while not done.wait(SECONDS_BETWEEN_NOTES):
            console.say(f"building ({what}): {state[0]}, {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        done.set()
        thread.join()
