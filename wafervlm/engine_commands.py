"""The command ``wafervlm engine``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wafervlm import console
from wafervlm.errors import UsageError

if TYPE_CHECKING:
    from wafervlm.bundle import Bundle


@click.command()
@click.option(
    "--bundle",
    required=True,
    type=click.Path(path_type=Path),
    help="Bundle folder, exported with --vision float32: not the embedded one, whose vision tower computes "
    "in 8-bit integers, which TensorRT does not read.",
)
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
    "--words",
    is_flag=True,
    help="Generate text too, for wafervlm describe: two more engines, in which the weights are stored once "
    "more, and which take their own memory of the GPU where text is asked for.",
)
@click.option(
    "--max-prompt",
    type=click.IntRange(min=1),
    help="Tokens of a question and its image read at once; of a longer one the rest follows one by one, "
    "which is slow. With --words.  [default: 1024]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="How far label log-probabilities may lie off.  [default: bf16 0.5, fp16 0.06, fp32 0.01]",
)
@click.option("--replace", is_flag=True, help="Put the engine in the place of another one that is at OUT.")
@console.json_option
def engine(
    bundle: Path,
    out: Path,
    target: str,
    precision: str,
    max_batch: int,
    words: bool,
    max_prompt: int | None,
    tolerance: float | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Compile a bundle into a TensorRT engine, which one or more kinds of GPU can run.

    With --target rtx:... no GPU is needed; the engine must pass wafervlm verify on each machine before it is
    used there. Built on the machine with the GPU, it runs the golden maps at once, and is written only where
    their scores come out. An engine runs with the version of TensorRT that built it, and no other. One that
    is at OUT already, of the same bundle and settings, is left as it is; another one needs --replace.

    With --words the bundle must have been exported with words. What its own graphs say of two golden maps is
    kept as reference, which takes wafervlm[cpu,words] here; the tool needs wafervlm[words] alone.

    \b
    Example:
      wafervlm engine --bundle bundle/ --target rtx:8.6,8.9,12.0 -o engine/
      wafervlm engine --bundle bundle/ -o engine/
      wafervlm engine --bundle bundle/ -o engine/ --words
    """
    from wafervlm.bundle import open_bundle
    from wafervlm.engine import check_output, verify_command
    from wafervlm.engine_build import draft_of, found_or_built, report_lines
    from wafervlm.runtimes.tensorrt_build import TOLERANCES, check_buildable
    from wafervlm.runtimes.tensorrt_target import find_target

    opened = open_bundle(bundle)
    check_output(out)
    check_buildable(opened.manifest, precision, ())
    longest = _max_prompt(opened, max_prompt) if words else None
    if max_prompt is not None and not words:
        raise UsageError("--max-prompt is for an engine with words; add --words, or leave it out")
    found = find_target(target)
    allowed = tolerance or TOLERANCES[precision]
    console.settings(
        {
            "bundle": f"{bundle} ({opened.manifest.name} {opened.digest[:12]})",
            "out": out,
            "builder": f"{found.library.name} {found.library.version} ({found.reason})",
            "gpu": found.gpu.name if found.gpu else "none needed",
            "compute_capabilities": found.compute_capabilities,
            "precision": precision,
            "weights": opened.manifest.graph.precision,
            "max_batch": max_batch,
            "words": f"prompts of up to {longest} tokens at once" if longest else "none",
            "tolerance": allowed,
        }
    )
    draft = draft_of(
        opened, found, precision=precision, max_batch=max_batch, max_prompt=longest, tolerance=allowed
    )
    started = time.monotonic()
    manifest = found_or_built(opened, found, draft, out, replacing=replace)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        console.json_line({"engine": str(out), "seconds": seconds, **manifest.to_dict()})
    else:
        for line in report_lines(out, manifest, seconds):
            click.echo(line)
    if manifest.verification is None:
        console.say(
            "unverified: it is refused until the golden maps have come out on the machine that uses it"
        )
        console.say(f"next: {verify_command(out, opened.path)}")
    else:
        console.next_command("wafervlm", "predict", "map.npy", "--bundle", opened.path, "--engine", out)


def _max_prompt(bundle: Bundle, asked: int | None) -> int:
    """How many tokens are read at once. Raises UsageError where the bundle generates no text."""
    from wafervlm.words.opening import words_section_of
    from wafervlm.words.tensorrt_build import MAX_PROMPT

    context = words_section_of(bundle).context
    if asked is not None and asked > context:
        raise UsageError(f"--max-prompt is {asked}, and the bundle's words read at most {context} tokens")
    return min(asked or MAX_PROMPT, context)
