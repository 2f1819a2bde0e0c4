"""The commands that check: ``wafervlm verify`` a bundle or an engine, ``wafervlm doctor`` the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from wafervlm import console
from wafervlm.errors import SetupError
from wafervlm.options import bundle_option, cache_option, engine_option, threads_option


@click.command()
@bundle_option
@engine_option
@click.option(
    "--runtime",
    type=click.Choice(["onnx", "onnx-cuda", "openvino", "tensorrt"]),
    help="What executes the graph: each that predict is to use is verified by itself, so there is no auto; "
    "tensorrt takes --engine.  [default: tensorrt with --engine, else onnx]",
)
@cache_option
@threads_option
@click.option(
    "--digest",
    metavar="HEX",
    help="The bundle's digest as it was noted where it was exported, its first 12 digits or more.",
)
@console.json_option
def verify(
    bundle: Path | None,
    engine: Path | None,
    runtime: str | None,
    runtime_cache: Path | None,
    threads: int | None,
    digest: str | None,
    as_json: bool,
) -> None:
    """Check that a bundle answers here as it did where it was made.

    Compares every file's digest, then runs the golden maps that the bundle carries and compares their
    scores with the reference, at exact accuracy where the graph has such a form, and as deployed. With
    --engine they run on that engine and this GPU, which is what an engine needs before its first use. The
    files and the manifest may all have been exchanged together: --digest compares the bundle with the one
    that you noted. Exit code 3 where they do not come out.

    \b
    Example:
      wafervlm verify --bundle bundle/
      wafervlm verify --bundle bundle/ --digest 3f1c09a2b7de
      wafervlm verify --bundle bundle/ --runtime openvino
      wafervlm verify --bundle bundle/ --engine engine/
    """
    from wafervlm.bundle import open_bundle
    from wafervlm.verification import verify as run

    opened = open_bundle(bundle)
    on = runtime or ("onnx" if engine is None else "tensorrt")
    console.settings(
        {
            "bundle": f"{bundle or 'embedded'} ({opened.manifest.name} {opened.digest[:12]})",
            "runtime": on,
            **({} if engine is None else {"engine": engine, "runtime_cache": runtime_cache}),
            "threads": threads or "one for each core",
            "digest": digest,
        }
    )
    report = run(
        opened, runtime=runtime, threads=threads, engine=engine, runtime_cache=runtime_cache, digest=digest
    )
    if as_json:
        console.json_line(report)
    else:
        for line in report_lines(report, on):
            click.echo(line)
    if engine is not None and not report["recorded"]:
        console.say(f"{engine} cannot be written: the golden maps run at each start instead")
    chosen = ["--runtime", runtime] if runtime else []
    named = console.named(bundle=bundle, engine=engine)
    console.next_command("wafervlm", "predict", "map.npy", *named, *chosen)


_LEVELS = {"exact": "at exact accuracy", "deployed": "as deployed"}


def report_lines(report: Mapping[str, Any], runtime: str) -> Iterator[str]:
    """What came out, in words; the last line says by how much it passed."""
    yield f"bundle {report['bundle']}"
    yield f"{report['maps']} golden maps on {runtime}"
    levels = {_LEVELS[name]: report[name] for name in _LEVELS if name in report} or {"on this GPU": report}
    for name, found in levels.items():
        yield (
            f"{name}: label log-probabilities up to {found['max_abs_difference']:.2g} off the checkpoint's, "
            f"the same answer on {found['label_agreement']:.0%} of the maps"
        )
    words = report.get("words")
    if words is not None:
        yield (
            f"words: token log-probabilities up to {words['max_abs_difference']:.2g} off, the same token "
            f"{words['token_agreement']:.0%} of {words['tokens']} times"
        )
    parts = [
        f"{name} {found['max_abs_difference']:.2g} off where {found['tolerance']:.3g} is allowed"
        for name, found in levels.items()
    ]
    yield f"passed: {'; '.join(parts)}"


@click.command()
@console.json_option
def doctor(as_json: bool) -> None:
    """Check this machine, and say what to do about what is missing.

    One line for each part, and for each thing that can be done here: absent ones are named with the command
    that brings them, and are no fault. Exit code 4 where nothing here can predict.

    \b
    Example:
      wafervlm doctor
    """
    from wafervlm.capabilities import State
    from wafervlm.doctor import examine

    checks = examine()
    healthy = all(check.state is not State.MISSING for check in checks)
    if as_json:
        console.json_line({"healthy": healthy, "checks": [check.to_dict() for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = click.style(f"{check.state.value:<7}", fg=check.state.colour)
            advice = f"; {check.advice}" if check.advice else ""
            click.echo(f"{mark}  {check.name:<{width}}  {check.found}{advice}")
    if not healthy:
        raise click.exceptions.Exit(SetupError.exit_code)
    console.next_command("wafervlm", "verify")
