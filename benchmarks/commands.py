"""The commands ``wafervlm benchmark`` and ``wafervlm run``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wafervlm import console
from wafervlm.errors import GateError, SetupError, UsageError

if TYPE_CHECKING:
    from benchmarks.line import Plan

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--latency", is_flag=True, expose_value=False, help="Only time the bundle; see below.")
@click.option("--words", is_flag=True, expose_value=False, help="Judge what models say in words; see below.")
@click.option("--bundle", type=_FOLDER, help="Bundle folder.  [default: the embedded nano bundle]")
@click.option(
    "--reference",
    type=_FOLDER,
    required=True,
    help="Full-precision checkpoint that the bundle was made from.",
)
@click.option("--base", type=_FOLDER, help="Checkpoint before fine-tuning, for zero-shot figures.")
@click.option(
    "--maps", type=_PATH, required=True, help="Labelled maps: dataset folder, .npz, folder of class folders."
)
@click.option("--split", default="test", show_default=True, help="Part of a dataset folder or split file.")
@click.option(
    "--natural",
    type=_PATH,
    help="Labelled maps in their natural mix: screening, calibration and agreement are taken there too.",
)
@click.option(
    "--natural-split-file", help="Take only the part --split of this split file, or committed split, of them."
)
@click.option(
    "--full-precision-bundle",
    "full_precision",
    type=_FOLDER,
    help="Bundle of the reference.  [default: exported for this run]",
)
@click.option("-o", "--out", type=_PATH, required=True, help="Folder of the report to write.")
@click.option(
    "--latency-maps",
    default=200,
    show_default=True,
    help="Calls timed of each contender, each on its own map.",
)
@click.option(
    "--generate-maps", default=20, show_default=True, help="Calls timed of generate, which is slow."
)
@click.option("--threads", default=2, show_default=True, help="Threads of every contender.")
@click.option(
    "--margin",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    help="Points of accuracy that may be lost and still be called not worse.",
)
@click.option("--quick", is_flag=True, help="Few maps and calls: a look, not a figure to report.")
@click.option(
    "--footprint/--no-footprint",
    default=True,
    show_default=True,
    help="Measure load time and memory of each contender.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where checkpoints are scored; latency is always that of the CPU.",
)
@console.json_option
def benchmark(out: Path, margin: float, as_json: bool, **options: Any) -> None:
    """Judge a bundle against the full-precision checkpoint it was made from, with a report.

    Accuracy, agreement, calibration and latency on the same maps, against our static graph at full precision,
    one forward and generate in transformers, and OpenVINO. The last line on stdout is the summary as JSON.

    With --latency only the bundle is timed, on maps made from its golden maps: no checkpoint, no labelled
    maps, no workshop. Its options: wafervlm benchmark --latency --help. With --words it is judged what models
    say of wafers in words. Its options: wafervlm benchmark --words --help.

    \b
    Example:
      wafervlm benchmark --latency --bundle runs/bundle --runtime openvino
      wafervlm benchmark --bundle runs/bundle --reference runs/merged --maps runs/data -o runs/report
      wafervlm benchmark --words --subject sft=runs/base+runs/sft --maps runs/data -o runs/words
    """
    _quiet()
    from benchmarks.config import BenchmarkConfig
    from benchmarks.stage import HTML, benchmark as run, summary

    config = BenchmarkConfig(margin=margin / 100, **options).settled()
    shown = {name: getattr(config, name) for name in options}
    console.settings({**shown, "out": out, "margin": margin})
    report, made = run(config, out)
    console.say(f"wrote {out}" if made else f"{out} is complete and of these inputs already; nothing to do")
    found = {"report": str(out / HTML), **summary(report)}
    if not as_json:
        for line in table(report):
            click.echo(line)
    console.json_line(found)
    console.next_command("open", out / HTML)


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Check the recipe, say what each stage would do, and stop.")
@click.option("--redo", metavar="STAGE", help="Make this stage and those after it anew.")
@console.json_option
def run(recipe: Path, dry_run: bool, redo: str | None, as_json: bool) -> None:
    """Drive the whole line as a RECIPE says: from wafer maps and a base checkpoint to bundle and report.

    Each stage writes a folder of its own. Interrupt or kill the command and run it again: stages that are
    complete are left as they are, and training and calibration go on where they stopped. train/recipes/ has
    recipes for 4B and 7B on one GPU and on four; --dry-run says what training takes and what is missing here.

    \b
    Example:
      wafervlm run train/nano/demo.toml
      wafervlm run train/recipes/qwen3_vl_4b_24gb.toml --dry-run
    """
    _quiet()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "one process drives the line; start it without a launcher, line.accelerate names one"
        )
    from benchmarks.line import SETTINGS, drive, plan
    from benchmarks.recipe import chosen, read_recipe

    settings = read_recipe(recipe)
    console.settings(chosen(settings))
    if dry_run:
        found = plan(settings, redo)
        _foresee(found, as_json)
        if found.missing or not found.fits:
            raise click.exceptions.Exit(SetupError.exit_code if found.missing else GateError.exit_code)
        console.next_command("wafervlm", "run", recipe)
        return
    console.say(f"all settings, those left at their defaults too, go into {settings.folder / SETTINGS}")
    outcome = drive(settings, redo=redo)
    if not as_json:
        for line in table(outcome.report):
            click.echo(line)
    console.json_line(outcome.summary)
    console.say(f"report: {outcome.page}")
    named = ("--bundle", outcome.bundle, "--plot", "answer.png")
    console.next_command("wafervlm", "predict", outcome.example, *named)


def _foresee(plan: Plan, as_json: bool) -> None:
    from benchmarks.memory import GIB, shown

    if as_json:
        console.json_line({**plan.to_dict(), "fits": plan.fits})
        return
    console.result({s["stage"]: f"{s['does']} -> {s['out']} ({s['state']})" for s in plan.stages})
    if plan.memory:
        device = "the device" if plan.devices == 1 else f"each of {plan.devices} devices"
        room = f" of {plan.budget / GIB:.1f} GiB" if plan.budget else ""
        first = f", after {plan.loading / GIB:.1f} while it loads" if plan.loading else ""
        sizes = " (by the model's published sizes)" if plan.published else ""
        fits = "" if plan.fits else ": TOO MUCH, lower train.batch or take more or larger GPUs"
        click.echo(f"training takes on {device}, in GiB{sizes}: {shown(plan.memory)}{room}{first}{fits}")
    else:
        click.echo("what training takes is not known without the base's configuration")
    for lack in plan.missing:
        click.echo(f"missing here: {lack}")


def table(report: dict[str, Any]) -> list[str]:
    """The figures for people: accuracy of each model, and latency of each contender."""
    lines = [f"{'':34}{'accuracy':>10}  95 % interval"]
    for name, figures in report["models"].items():
        found = figures["accuracy"]
        low, high = 100 * found["low"], 100 * found["high"]
        lines.append(f"{name:34}{100 * found['value']:>8.1f} %  [{low:.1f}, {high:.1f}]")
    lines.append(f"{'agreement with the reference':34}{100 * report['agreement']:>8.1f} %")
    lines += ["", f"{'milliseconds':34}{'p50':>10}{'p90':>10}{'p99':>10}{'x bundle':>10}"]
    for name, times in report["latency_ms"].items():
        ratio = report["latency"]["ratios"][name]["call"]
        lines.append(
            f"{name:34}{times['p50']:>10.2f}{times['p90']:>10.2f}{times['p99']:>10.2f}{ratio:>10.2f}"
        )
    return [*lines, ""]


def _quiet() -> None:
    # Before transformers is imported: nothing is looked up, and tokenizers start no threads.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
