"""The command ``wafervlm data clean``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wafervlm import console

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source", type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="Folder to write.")
@click.option("-b", "--base", type=PATH, help="Checkpoint that looks at the maps.  [default: nano's base]")
@click.option("--drop", type=click.IntRange(1), metavar="N", help="Leave out the first N suspects.")
@click.option(
    "--drop-above",
    type=click.FloatRange(0.5, 1),
    metavar="S",
    help="Leave out suspects that score S or more.",
)
@click.option("--relabel", is_flag=True, help="Give those the suggested label instead of leaving them out.")
@click.option("--test-too", is_flag=True, help="Change suspects of part test too.")
@click.option(
    "--show",
    "shown",
    type=click.IntRange(1, 400),
    default=48,
    show_default=True,
    help="Suspects on the sheet.",
)
@click.option("--features", type=PATH, metavar="FILE", help="Keep features in FILE; a second run is quick.")
@click.option(
    "--task",
    "task_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Task file (.json or .toml) with your classes.  [default: the dataset's, or the nine of WM-811K]",
)
@click.option("--split-file", "split", help="How a source is split, as for wafervlm data build.")
@click.option("--skip-unknown", is_flag=True, help="Leave out maps of classes that the task does not have.")
@click.option("--device", default="cpu", show_default=True, help="Where the checkpoint runs: cpu or cuda.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@console.json_option
def clean(
    source: Path,
    out: Path,
    base: Path | None,
    task_file: Path | None,
    split: str | None,
    skip_unknown: bool,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """List labels of SOURCE that look wrong, with reasons and pictures.

    SOURCE is a dataset folder or anything that wafervlm data build reads. No label is changed and no map is
    left out unless --drop or --drop-above says so; look at sheet.png and suspects.csv first. Maps that carry
    two labels, rotated or mirrored too, come first. Part test is left as it is, since a test without its hard
    maps flatters: --test-too changes it as well.

    The folder written is a dataset folder, for wafervlm train and wafervlm data vqa; maps.npz in it holds all
    maps for wafervlm data build, which draws its parts anew unless it is given the folder's split.json.

    \b
    Example:
      wafervlm data clean maps.npz -o cleaned/ --features features.npz
      wafervlm data clean maps.npz -o cleaned-2/ --features features.npz --drop-above 0.95
      wafervlm data build -d cleaned-2/maps.npz --split-file cleaned-2/split.json -o data/
    """
    from train.build import BuildConfig
    from train.cleaning.clean import NANO_BASE, CleanConfig, clean as clean_labels
    from wafervlm.task import WAFER_DEFECTS, Task

    task = Task.from_file(task_file) if task_file else WAFER_DEFECTS
    build = BuildConfig(source=source, task=task, split=split, skip_unknown=skip_unknown, seed=seed)
    config = CleanConfig(build=build, base=base or NANO_BASE, **options)
    console.settings(
        {"source": source, "out": out, "base": config.base, "split": split, "seed": seed, **options}
    )
    counts, written = clean_labels(config, out)
    console.say(
        f"wrote {out}" if written else f"{out} is complete and of these inputs already; nothing to do"
    )
    console.result({"cleaned": str(out), **counts}, as_json)
    if counts["parts"]:
        console.next_command("wafervlm", "data", "vqa", out, "-o", "runs/vqa")
    else:
        console.next_command("wafervlm", "data", "build", "-d", out / "maps.npz", "-o", "runs/data")
