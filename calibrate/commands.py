"""The command ``wafervlm calibrate``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from train.commands import device_option, settled_device
from train.cost_options import dry_run_option, show_cost
from wafervlm import console

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@click.option(
    "-d", "--dataset", type=_FOLDER, required=True, help="Dataset folder; its train maps calibrate."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder of the GPTQ checkpoint."
)
@click.option("--bits", default=4, show_default=True, help="Bits per weight.")
@click.option("--group", default=128, show_default=True, help="Inputs that share a scale, 32 or 128.")
@click.option("--maps", default=270, show_default=True, help="Calibration maps, equally many of each class.")
@click.option("--batch", default=16, show_default=True, help="Maps at a time; fewer take less memory.")
@click.option("--check-maps", default=270, show_default=True, help="Held-out maps that the gate is taken on.")
@click.option(
    "--damping", default=0.01, show_default=True, help="Share of the Hessian's mean added to its diagonal."
)
@click.option(
    "--act-order/--no-act-order", default=True, show_default=True, help="Quantize strong inputs first."
)
@click.option(
    "--clip/--no-clip", default=True, show_default=True, help="Choose each group's range for least error."
)
@click.option(
    "--weigh",
    type=click.Choice(["answers", "same"]),
    default="answers",
    show_default=True,
    help="What a token counts: as much as it bears on the answers, or all the same (no backward pass).",
)
@click.option(
    "--words",
    default=0,
    show_default=True,
    help="Of so many of the maps a description in three parts too, for a model that describes.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="Of the Hessians.",
)
@device_option
@click.option(
    "--offload",
    type=click.Choice(["none", "host", "disk"]),
    default="none",
    show_default=True,
    help="Keep one layer on the device and the others in the host's memory, or on disk; needs --weigh same, "
    "for answers are weighed by a pass back through all layers at once.",
)
@click.option("--seed", default=0, show_default=True, help="Which maps are drawn.")
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write a table to DIR: GPTQ on wafers, with tokens weighed and not, on generic images and on "
    "text, and round-to-nearest, at 4 and 3 bits (ten more calibrations).",
)
@click.option(
    "--compare-on",
    type=click.Path(exists=True, path_type=Path),
    metavar="MAPS",
    help="Labelled maps for that table: a dataset folder, of which --compare-split is read, or a source of "
    "labelled maps, which is read whole.  [default: the tune part of --dataset]",
)
@click.option(
    "--compare-split",
    type=click.Choice(["tune", "test"]),
    default="test",
    show_default=True,
    help="Which part of the dataset folder --compare-on is read; a source of maps is read whole.",
)
@dry_run_option
@console.json_option
def calibrate(
    checkpoint: Path, dataset: Path, out: Path, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Quantize a merged CHECKPOINT with GPTQ on the wafer maps of its dataset.

    Fails where labels agree with full precision on less than 98 % of held-out maps, or where the result is no
    better than round-to-nearest. Finished layers are kept beside the output, in OUT.partial: interrupt the
    command and run it again.

    \b
    Example:
      wafervlm calibrate runs/merged -d runs/data -o runs/gptq --group 32
      wafervlm calibrate runs/merged -d runs/data -o runs/gptq --compare runs/table --compare-on runs/data
      wafervlm calibrate runs/merged -d runs/data -o runs/gptq --offload host --weigh same --device cuda
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from dataclasses import asdict

    from calibrate.stage import calibrate as run

    table, on, part = (options.pop(name) for name in ("compare", "compare_on", "compare_split"))
    settings = _settings(options)
    console.settings({"checkpoint": checkpoint, "dataset": dataset, "out": out, **asdict(settings)})
    if dry_run:
        from calibrate.estimate import estimate

        show_cost(estimate(checkpoint, dataset, settings), out, as_json)
        return
    if table is not None:
        from calibrate.compare import TABLE, compare, maps_to_judge

        maps_to_judge(dataset, on, part)  # what is wrong with them is told before hours of calibration
    figures = run(checkpoint, dataset, out, settings)
    if table is not None:
        figures["comparison"] = compare(checkpoint, dataset, table, settings, on, part)
        console.say((table / TABLE).read_text(encoding="utf-8"))
    console.result({"checkpoint": str(out), **figures}, as_json)
    console.next_command("wafervlm", "export", out, "-d", dataset, "-o", out.with_name("bundle"))


def _settings(options: dict[str, Any]) -> Any:
    from calibrate.gptq import Scheme
    from calibrate.stage import CalibrateSettings

    options["device"] = settled_device(options["device"])
    names = ("bits", "group", "damping", "act_order", "clip", "precision")
    return CalibrateSettings(Scheme(**{name: options.pop(name) for name in names}), **options)
