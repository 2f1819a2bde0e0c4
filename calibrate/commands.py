"""The command ``wafervlm calibrate``."""

from __future__ import annotations

import os
from pathlib import Path

import click

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
@click.option("--check-maps", default=270, show_default=True, help="Held-out maps that the gate is taken on.")
@click.option(
    "--damping", default=0.01, show_default=True, help="Share of the Hessian's mean added to its diagonal."
)
@click.option(
    "--act-order/--no-act-order", default=True, show_default=True, help="Quantize strong inputs first."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--seed", default=0, show_default=True, help="Which maps are drawn.")
@click.option(
    "--compare", is_flag=True, help="Also compare with other calibrations, at 4 and at 3 bits (slow)."
)
@console.json_option
def calibrate(
    checkpoint: Path,
    dataset: Path,
    out: Path,
    bits: int,
    group: int,
    maps: int,
    check_maps: int,
    damping: float,
    act_order: bool,
    device: str,
    seed: int,
    compare: bool,
    as_json: bool,
) -> None:
    """Quantize a merged CHECKPOINT with GPTQ on the wafer maps of its dataset.

    Finished layers are kept beside the output, in OUT.partial: interrupt the command and run it again.

    \b
    Example:
      wafervlm calibrate runs/merged -d runs/data -o runs/gptq --group 32
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from dataclasses import asdict

    from calibrate.gptq import Scheme
    from calibrate.stage import CalibrateSettings, calibrate as run

    scheme = Scheme(bits=bits, group=group, damping=damping, act_order=act_order)
    settings = CalibrateSettings(scheme, maps=maps, check_maps=check_maps, device=device, seed=seed)
    console.settings(asdict(settings))
    figures = run(checkpoint, dataset, out, settings)
    if compare:
        from calibrate.compare import compare as run_compare

        figures["comparison"] = run_compare(
            checkpoint, dataset, out.with_name(out.name + "-comparison"), settings
        )
    console.result({"checkpoint": str(out), **figures}, as_json)
    console.next_command(f"wafervlm export {out} -d {dataset} -o {out.with_name('bundle')}")
