"""The command ``python -m benchmarks.gpu``; see the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.parts import run_parts
from benchmarks.gpu.ratios import profile_table, ratio_table
from benchmarks.gpu.settings import DTYPES, NANO, SHAPES, Settings
from wafervlm import console
from wafervlm.errors import WaferVLMError

PATH = click.Path(path_type=Path)
EVERY = {"both": tuple(SHAPES)}


@click.command(context_settings=console.HELP)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    type=click.Choice([*SHAPES, "both", NANO]),
    default=("both",),
    show_default=True,
    help="What to measure; may be given several times.",
)
@click.option(
    "-o", "--out", type=PATH, required=True, help="JSON file to write; one that is there is gone on with."
)
@click.option("--config-folder", type=PATH, help="Folder with the real configurations and tokenizers.")
@click.option("--checkpoint", type=PATH, help="Trained weights for nano.  [default: those of the tree]")
@click.option("--device", default="cuda", show_default=True, help="cuda, or cpu to try the command.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 4, 16), show_default=True)
@click.option("--maps", default=32, show_default=True, help="Different wafer maps to call on.")
@click.option("--answer-tokens", default=0, help="Tokens to generate.  [default: as the answers have]")
@click.option("--group", default=128, show_default=True, help="Input columns to a scale in INT4.")
@click.option("--row-seconds", default=6.0, show_default=True, help="Time for the timed calls of a row.")
@click.option("--budget", default=540.0, show_default=True, help="Seconds for all; what is left out says so.")
@click.option("--text-layers", default=0, help="Fewer decoder layers than the configuration has.")
@click.option("--vision-layers", default=0, help="Fewer vision blocks than the configuration has.")
@click.option("--gptq-layers", default=2, show_default=True, help="Layers that GPTQ is timed on; 0: none.")
@click.option("--gptq-maps", default=64, show_default=True, help="Maps that GPTQ calibrates on.")
@click.option(
    "--compile/--no-compile", "compiled", default=True, show_default=True, help="torch.compile too."
)
@click.option("--profile/--no-profile", default=True, show_default=True, help="Tables of kernels.")
@click.option("--bundle", "bundles", multiple=True, type=PATH, help="Bundle to run on ONNX Runtime.")
@click.option("--engine", "engines", multiple=True, type=PATH, help="Engine folder, one for each bundle.")
@click.option("--seed", default=0, show_default=True)
@console.json_option
def main(shapes: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Time every pass against full precision and against the floor of this GPU.

    \b
    Examples:
      python -m benchmarks.gpu --config-folder models -o results.json
      python -m benchmarks.gpu --shape nano --device cpu --dtype float32 -o nano.json
    """
    named = tuple(dict.fromkeys(name for shape in shapes for name in EVERY.get(shape, (shape,))))
    settings = Settings(shapes=named, **options)
    console.settings({"shapes": named, "budget": settings.budget, **settings.to_dict()})
    results = run_parts(settings, out)
    rows = list(results.rows.values())
    if as_json:
        console.json_line({"out": str(out), **results.to_dict()})
        return
    for line in ratio_table(rows):
        click.echo(line)
    for row in rows:
        if row.get("kind") == "profile" and row.get("status") == "ok":
            for line in profile_table(row):
                click.echo(line)
    console.say(f"written to {out}")


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except (click.ClickException, click.exceptions.Abort) as error:
        if isinstance(error, click.ClickException):
            error.show()
        sys.exit(getattr(error, "exit_code", 1))
    except WaferVLMError as error:
        console.say(f"Error: {error}")
        sys.exit(error.exit_code)
