"""The command ``wafervlm describe``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wafervlm import console
from wafervlm.errors import UsageError
from wafervlm.options import (
    bins_option,
    bundle_option,
    cache_option,
    engine_option,
    foreign_option,
    read_bins,
    shown_bins,
    shown_runtime,
    threads_option,
)

if TYPE_CHECKING:
    from wafervlm.model import WaferVLM
    from wafervlm.words.description import Description


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@bundle_option
@engine_option
@click.option(
    "--runtime",
    type=click.Choice(["auto", "onnx", "onnx-cuda", "tensorrt"]),
    help="What executes the graphs; auto: tensorrt where --engine has words and can run here, else onnx-cuda "
    "where ONNX Runtime has a GPU, else onnx. OpenVINO generates no text.  "
    "[default: tensorrt with --engine, else onnx]",
)
@cache_option
@threads_option
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens at the most."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token each time; above it tokens are drawn.",
)
@click.option("--top-k", type=click.IntRange(min=0), default=0, help="Draw among so many.  [default: all]")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=1.0,
    show_default=True,
    help="Draw among those that together make up this probability.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of the drawing.  [default: another each time]")
@foreign_option
@bins_option
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds allowed.")
@click.option(
    "--check/--no-check",
    default=True,
    help="Strike what the dies contradict, or leave it as said.  [default: check]",
)
@click.option(
    "--redraws",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Answers drawn anew at the most while the dies contradict something.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the wafer, with the dies that bear out what is said, to this PNG file; one that is there "
    "already is replaced.",
)
@console.json_option
def describe(
    path: Path,
    question: str | None,
    bundle: Path | None,
    engine: Path | None,
    runtime: str | None,
    runtime_cache: Path | None,
    threads: int | None,
    bins: str | None,
    check: bool,
    redraws: int,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what is on the wafer in PATH: where, what, and candidate causes; or answer QUESTION about it.

    Prints what the model says as it says it. Then every claim that dies can decide is checked against them:
    what they contradict is struck, and both are shown. Causes are candidates; nothing checks them.

    Takes a bundle that was exported with words (wafervlm export --words), and the extra [words]; an --engine
    must have been built with words too (wafervlm engine --words).

    \b
    Example:
      wafervlm describe map.npy --bundle bundle/ --plot described.png
      wafervlm describe map.npy "Where is the largest cluster?" --bundle bundle/
      wafervlm describe map.npy "Which zone fails most?" --bundle bundle/ --json
      wafervlm describe map.npy "How many dies fail?" --bundle bundle/ --temperature 0.7 --seed 1
      wafervlm describe map.npy "How many dies fail?" --bundle bundle/ --engine engine/
    """
    from wafervlm.loading import load_for_words
    from wafervlm.picture_file import check_picture_file, save_picture

    if plot is not None:
        if not check:
            raise UsageError("--plot shows the dies that bear out what is said: leave --no-check away")
        check_picture_file(plot, [path])
    codes = None if bins is None else read_bins(bins)
    with load_for_words(
        bundle, runtime=runtime, threads=threads, engine=engine, runtime_cache=runtime_cache
    ) as model:
        console.settings(
            {
                "bundle": f"{bundle or 'embedded'} ({model.manifest.name} {model.digest[:12]})",
                "engine": engine,
                "runtime": shown_runtime(model, engine),
                "runtime_cache": runtime_cache,
                "threads": threads or "one for each core",
                "bins": shown_bins(codes),
                **options,
                "top_k": options["top_k"] or "all",
            }
        )
        asked: dict[str, Any] = {"wafer": path, "question": question, "bins": codes, **options}
        if as_json or redraws:
            said = model.describe(**asked, check=check, redraws=redraws)
        else:
            said = _streamed(model, check, asked)
    if plot is not None:
        save_picture(said.plot(), plot)
    if as_json:
        console.json_line({"path": path, **said.to_dict()})
        return
    if redraws:
        click.echo(said.text)
    _report(said)
    if plot is not None:
        console.say(f"drawn to {plot}")


def _streamed(model: WaferVLM, check: bool, asked: Mapping[str, Any]) -> Description:
    """Print what the model says as it says it; where something of it is struck, print what is left."""
    from wafervlm.words.checking import checked, need_scipy

    if check:
        need_scipy()
    with model.describe_stream(**asked) as stream:
        for piece in stream:
            click.echo(piece, nl=False)
        said = stream.result
    click.echo()
    said = checked(said) if check else said
    if said.struck:
        console.say("the dies contradict a part of it; without that:")
        click.echo(said.text)
    return said


def _report(said: Description) -> None:
    from wafervlm.words.checking import lines

    for line in lines(said) if said.claims is not None else ():
        console.say(f"  {line}")
    if said.claims is not None and not (said.claims or said.struck):
        console.say("  nothing in it could be checked: no claim about the dies was found")
    outside = "" if said.locked else "; outside the lock"
    spent = said.timing_ms["total"] / 1e3
    console.say(
        f"{len(said.tokens)} tokens in {spent:.2f} s, {said.tokens_per_second:.0f} a second, "
        f"{said.runtime}, {_ENDS[said.finish]}{outside}"
    )


_ENDS = {
    "stop": "ended by itself (stop)",
    "length": "cut off at the maximum (length); allow more with --max-tokens",
    "cancelled": "stopped (cancelled)",
}
