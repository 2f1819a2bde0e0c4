"""The command ``wafervlm data``: datasets and splits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from train.cleaning.commands import clean
from train.rubrics.commands import lint
from train.vqa.commands import vqa
from wafervlm import console


class Count(click.ParamType[int | str]):
    """A number of maps, or "all" (None)."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or "all"."""
        if value == "all":
            return "all"
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of maps of at least 1 nor 'all'", param, ctx)
        return int(value)


@click.group()
def data() -> None:
    """Turn wafer maps into a dataset to train on.

    \b
    Example:
      wafervlm data build -d LSWMD.pkl -o runs/data
      wafervlm data clean --help
    """


data.add_command(clean)
data.add_command(lint)
data.add_command(vqa)
# The list of commands cuts a first sentence that does not fit on its line.
lint.short_help = "Check rubrics before a model is rewarded by them."
vqa.short_help = "Write texts about the maps of a dataset."


@data.command(short_help="Build a dataset folder to train on.")
@click.option(
    "-d",
    "--data",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="LSWMD.pkl, WM811K.pkl, a .npz, a folder of class folders, or the word synthetic.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Dataset folder to write.")
@click.option(
    "-t",
    "--train",
    type=Count(),
    metavar="N|all",
    default=100,
    show_default=True,
    help="Maps to train on, of each class.",
)
@click.option(
    "-e",
    "--test",
    type=Count(),
    metavar="N|all",
    default=20,
    show_default=True,
    help="Maps to test on, of each class.",
)
@click.option(
    "--tune",
    type=Count(),
    metavar="N|all",
    default=None,
    help="Maps of each class for early stopping and choosing.  [default: as many as -e]",
)
@click.option(
    "-s",
    "--size",
    nargs=2,
    type=click.IntRange(16, 4096),
    default=None,
    metavar="H W",
    help="Image height and width in pixels.  [default: the task's]",
)
@click.option(
    "--natural", is_flag=True, help="Count maps in all, in their natural mix, instead of for each class."
)
@click.option(
    "--protocol",
    type=click.Choice(["corrected", "recipe"]),
    default="corrected",
    show_default=True,
    help="corrected: no lot or map in two parts; recipe: as the Cosmos scripts do it, faults included.",
)
@click.option(
    "--task",
    "task_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Task file (.json or .toml) with your classes and question.  [default: the nine of WM-811K]",
)
@click.option(
    "--split-file", "split", help="A split file, or the name of a committed one such as wm811k_pool."
)
@click.option("--skip-unknown", is_flag=True, help="Leave out maps of classes that the task does not have.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@console.json_option
def build(out: Path, task_file: Path | None, as_json: bool, **options: Any) -> None:
    """Build a dataset folder: images, die grids, LLaVA-style questions and answers, the split.

    \b
    Example:
      wafervlm data build -d LSWMD.pkl -o runs/data -t 100 -e 20 -s 256 256
    """
    from train.build import BuildConfig, build_dataset
    from wafervlm.task import WAFER_DEFECTS, Task

    options["tune"] = options["tune"] or options["test"]
    for part in ("train", "tune", "test"):
        options[part] = None if options[part] == "all" else options[part]
    config = BuildConfig(task=Task.from_file(task_file) if task_file else WAFER_DEFECTS, **options)
    task = config.settled_task()
    shown = {name: value for name, value in options.items() if name != "size"}
    shown |= {part: shown[part] or "all" for part in ("train", "tune", "test")}
    console.settings(
        {**shown, "out": out, "task": task.name, "size": [task.render.height, task.render.width]}
    )
    counts, built = build_dataset(config, out)
    console.say(f"wrote {out}" if built else f"{out} is complete and of these inputs already; nothing to do")
    console.say(table(counts))
    totals = {part: sum(classes.values()) for part, classes in counts.items()}
    console.result(
        {"dataset": str(out), "task_digest": task.digest, "maps": counts if as_json else totals}, as_json
    )
    console.next_command("wafervlm", "train", "train/sft.toml", "-b", "BASE", "-d", out, "-o", "runs/adapter")


@data.command(short_help="Split labelled maps by lots.")
@click.option(
    "-d", "--data", "source", required=True, type=click.Path(path_type=Path), help="Labelled wafer maps."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Split file (.json) to write."
)
@click.option(
    "--apart-from", type=click.Path(path_type=Path), help="Maps whose lots and maps no part may have."
)
@click.option("--about", default="", help="What the split is for, kept in the file.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draw of held-out blocks.")
@console.json_option
def split(source: Path, out: Path, apart_from: Path | None, about: str, seed: int, as_json: bool) -> None:
    """Split labelled maps by lots into train, tune and test, and record rows and map digests.

    \b
    Example:
      wafervlm data split -d train_pool.npz --apart-from val.npz -o split.json
    """
    from train.sources import read_source
    from train.splits import split_rows, write_split
    from wafervlm.errors import UsageError

    if out.exists():
        raise UsageError(f"{out} exists already; remove it or choose another name")
    console.settings({"data": source, "out": out, "apart_from": apart_from, "seed": seed})
    others = read_source(apart_from) if apart_from else None
    made = split_rows(read_source(source), name=out.stem, about=about, seed=seed, apart_from=others)
    write_split(made, out)
    console.say(table(made.counts))
    console.result({"split": str(out), "maps": made.counts, "dropped": made.dropped}, as_json)
    console.next_command("wafervlm", "data", "build", "-d", source, "-o", "runs/data", "--split-file", out)


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Class counts as lines of text: one row for each class, one column for each part."""
    classes = sorted({label for part in counts.values() for label in part})
    width = max((len(label) for label in classes), default=3)
    head = " " * width + "".join(f"{part:>8}" for part in counts)
    body = [
        f"{label:<{width}}" + "".join(f"{part.get(label, 0):>8,}" for part in counts.values())
        for label in classes
    ]
    foot = f"{'all':<{width}}" + "".join(f"{sum(part.values()):>8,}" for part in counts.values())
    return "\n".join([head, *body, foot])
