"""The command ``wafervlm engine``."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wafervlm import console
from wafervlm.commands import bundle_option
from wafervlm.errors import IntegrityError

if TYPE_CHECKING:
    from wafervlm.bundle import Bundle
    from wafervlm.engine import Engine
    from wafervlm.engine_manifest import EngineManifest, Verification
    from wafervlm.runtimes.tensorrt_build import Report, Target

SECONDS_BETWEEN_NOTES = 5.0


@click.command()
@bundle_option
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Engine folder to write.")
@click.option(
    "--target",
    default="auto",
    show_default=True,
    help="auto, rtx or tensorrt: for the GPU that is here; rtx:8.6,8.9,12.0: ahead of time for others.",
)
@click.option(
    "--precision",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    show_default=True,
    help="What products of matrices compute in; fp16 only where calibration left room.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Images that it takes at once.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="How far label log-probabilities may lie off.  [default: bf16 0.5, fp16 0.06, fp32 0.01]",
)
@console.json_option
def engine(
    bundle: Path | None,
    out: Path,
    target: str,
    precision: str,
    max_batch: int,
    tolerance: float | None,
    as_json: bool,
) -> None:
    """Compile a bundle into a TensorRT engine, which one or more kinds of GPU can run.

    With --target rtx:... no GPU is needed; the engine must pass wafervlm verify on each machine before it is
    used there. Built on the machine with the GPU, it runs the golden maps at once, and is written only where
    their scores come out. An engine runs with the version of TensorRT that built it, and no other.

    \b
    Example:
      wafervlm engine --bundle bundle/ --target rtx:8.6,8.9,12.0 -o engine/
      wafervlm engine --bundle bundle/ -o engine/
    """
    from wafervlm.bundle import open_bundle
    from wafervlm.engine import check_output, verify_command
    from wafervlm.runtimes.tensorrt_build import TOLERANCES, check_buildable, find_target

    opened = open_bundle(bundle)
    check_output(out)
    check_buildable(opened.manifest, precision, ())
    found = find_target(target)
    allowed = tolerance or TOLERANCES[precision]
    console.settings(
        {
            "bundle": f"{bundle or 'embedded'} ({opened.manifest.name} {opened.digest[:12]})",
            "out": out,
            "builder": f"{found.library.name} {found.library.version} ({found.reason})",
            "gpu": found.gpu.name if found.gpu else None,
            "compute_capabilities": found.compute_capabilities,
            "precision": precision,
            "weights": opened.manifest.graph.precision,
            "max_batch": max_batch,
            "tolerance": allowed,
        }
    )
    draft = _draft(opened, found, precision, max_batch, allowed)
    started = time.monotonic()
    manifest = _found_or_built(opened, found, draft, out)
    seconds = round(time.monotonic() - started, 1)
    console.result({"engine": str(out), "seconds": seconds, **manifest.to_dict()}, as_json)
    if manifest.verification is None:
        console.say(
            "unverified: it is refused until the golden maps have come out on the machine that uses it"
        )
        console.say(f"next: {verify_command(out, opened.path)}")
    else:
        console.next_command("wafervlm", "predict", "map.npy", "--bundle", opened.path, "--engine", out)


def _draft(
    bundle: Bundle, target: Target, precision: str, max_batch: int, tolerance: float
) -> EngineManifest:
    """The manifest but for what is known once the engine is built."""
    from wafervlm.bundle import FileEntry
    from wafervlm.engine import now
    from wafervlm.engine_manifest import ENGINE_FILE, EngineManifest

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
        file=FileEntry(ENGINE_FILE, "0" * 64, 0),
        gpu=target.gpu.name if target.gpu else None,
        driver=target.gpu.driver if target.gpu else None,
    )


def _found_or_built(bundle: Bundle, target: Target, draft: EngineManifest, out: Path) -> EngineManifest:
    """The manifest of the engine in ``out``, built where none stands there that is what is asked for. Where
    the GPU is here the golden maps have come out of it, and ``verification`` says so."""
    from wafervlm.engine import Engine
    from wafervlm.runtimes.tensorrt import find_place

    standing = _standing(out, draft)
    if standing is None:
        return _build(bundle, target, draft, out)
    console.say(f"{out} is complete and of this bundle already; it is not built again")
    if target.gpu is None:
        return standing
    # It may have been built ahead of time, or on another GPU of this compute capability.
    engine = Engine(out, standing)
    known = engine.verified_at(find_place(engine, bundle))
    return replace(standing, verification=known or _verify(bundle, engine))


def _standing(out: Path, draft: EngineManifest) -> EngineManifest | None:
    """The manifest of the engine that stands in ``out`` and is what is asked for, if one does."""
    from wafervlm.engine import Engine, read_manifest

    try:
        manifest = read_manifest(out)
        if not draft.made_like(manifest):
            return None
        Engine(out, manifest).read()
    except IntegrityError:
        return None
    return manifest


def _build(bundle: Bundle, target: Target, draft: EngineManifest, out: Path) -> EngineManifest:
    """Build the engine and write its folder, whole and only where the golden maps come out."""
    from wafervlm.engine import Engine, write_engine_manifest, write_file, writing_engine
    from wafervlm.runtimes.tensorrt_build import build_engine

    with writing_engine(out) as work:
        with _notes() as report:
            data = build_engine(
                bundle, target, precision=draft.precision, max_batch=draft.max_batch, report=report
            )
        console.say(f"writing {data.nbytes / 1e6:.1f} MB")
        manifest = replace(draft, file=write_file(work, data))
        del data
        write_engine_manifest(work, manifest)
        if target.gpu is not None:
            manifest = replace(manifest, verification=_verify(bundle, Engine(work, manifest)))
            write_engine_manifest(work, manifest)
    return manifest


def _verify(bundle: Bundle, engine: Engine) -> Verification:
    from wafervlm.verification import verify_engine

    console.say("running the golden maps")
    return verify_engine(bundle, engine)[0]


@contextmanager
def _notes() -> Iterator[Report]:
    """Say every five seconds how far the build is: TensorRT tells its phases and steps, and not how long they
    will take."""
    started = time.monotonic()
    state = ["reading the graph"]
    done = threading.Event()

    def report(phase: str, step: int, steps: int) -> None:
        state[0] = f"{phase.lower()}, step {step} of {steps}" if steps > 1 else phase.lower()

    def beat() -> None:
        while not done.wait(SECONDS_BETWEEN_NOTES):
            console.say(f"building: {state[0]}, {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield report
    finally:
        done.set()
        thread.join()
