"""The command ``wafervlm report``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from wafervlm import console

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.argument("runs", type=_PATH, required=False)
@click.option("-o", "--out", type=_PATH, required=True, help="Folder of the report to write.")
@click.option(
    "--template",
    type=click.Choice(["cookbook"]),
    default="cookbook",
    show_default=True,
    help="cookbook: benchmark selection, zero-shot evaluation, problem analysis, data curation, "
    "post-training, re-evaluation.",
)
@click.option("--dataset", type=_FOLDER, multiple=True, help="What wafervlm data build wrote.")
@click.option("--cleaned", type=_FOLDER, help="What wafervlm data clean wrote.")
@click.option("--vqa", type=_FOLDER, help="What wafervlm data vqa wrote.")
@click.option("--base", type=_FOLDER, help="Checkpoint before fine-tuning.")
@click.option("--zero-shot", type=_FOLDER, help="What the zero-shot stage of wafervlm run wrote.")
@click.option("--adapter", type=_FOLDER, multiple=True, help="What wafervlm train wrote; may be repeated.")
@click.option("--rl", type=_FOLDER, help="What wafervlm train wrote from a file with a table [rl].")
@click.option("--merged", type=_FOLDER, help="What wafervlm merge wrote.")
@click.option("--gptq", type=_FOLDER, help="What wafervlm calibrate wrote.")
@click.option("--comparison", type=_FOLDER, help="What wafervlm calibrate --compare wrote.")
@click.option(
    "--bundle",
    type=_FOLDER,
    help="What wafervlm export wrote. Where no answers are kept for wafers that are at hand it is asked now.",
)
@click.option("--predictions", type=_FOLDER, help="What the predict stage of wafervlm run wrote.")
@click.option("--benchmark", type=_FOLDER, help="What wafervlm benchmark wrote.")
@click.option("--words", type=_FOLDER, help="What wafervlm benchmark --words wrote.")
@click.option("--lint", type=_FILE, help="What wafervlm data lint --json printed.")
@click.option(
    "--maps",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Labelled maps that figures were taken on: examples show them, commands name them. May be repeated.",
)
@click.option("--title", default="", help="Of the report.  [default: the bundle's name]")
@click.option("--replace", is_flag=True, help="Put the report in the place of another one that is at OUT.")
@console.json_option
def report(
    runs: Path | None,
    out: Path,
    template: str,
    lint: Path | None,
    maps: tuple[Path, ...],
    title: str,
    replace: bool,
    as_json: bool,
    **named: Any,
) -> None:
    """Fill a report from what the stages of the line wrote: HTML and Markdown, with tables and pictures.

    Artefacts are found in the folder RUNS by their provenance: what the newest benchmark was made from, and
    of the rest the newest. An option names one in its place. What is not there is said in the report, and
    every figure names the command that made it.

    \b
    Example:
      wafervlm report runs/ -o report/ --maps val.npz
      wafervlm report --dataset runs/data --adapter runs/adapter --benchmark runs/report -o report/
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.cookbook.drawing import HTML
    from benchmarks.cookbook.stage import ReportConfig, write_report

    given = {kind: _paths(value) for kind, value in named.items()}
    words: list[object] = ["wafervlm", "report", *([runs] if runs else []), "-o", out]
    for kind, paths in given.items():
        words += [word for path in paths for word in (f"--{kind.replace('_', '-')}", path)]
    words += [word for path in maps for word in ("--maps", path)]
    console.settings({"runs": runs, "out": out, "template": template, "maps": maps, **given})
    config = ReportConfig(runs, given, maps, lint, title, template, console.command(*words))
    found, written = write_report(config, out, replace=replace)
    console.say(
        f"wrote {out}" if written else f"{out} is complete and of these artefacts already; nothing to do"
    )
    console.result({"report": str(out / HTML), **found}, as_json)
    console.next_command("open", out / HTML)


def _paths(value: Any) -> tuple[Path, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)
