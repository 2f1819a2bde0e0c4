"""The commands ``wafervlm train`` and ``wafervlm merge``; ``wafervlm data`` is found here too."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

import click

from train.cost_options import dry_run_option, show_cost
from train.data_commands import data as data
from wafervlm import console
from wafervlm.errors import UsageError

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes cuda where there is a GPU.",
)
"""Decorator that adds ``--device`` to a command; ``settled_device`` decides what auto is."""


def settled_device(device: str) -> str:
    """``device`` with "auto" decided for this machine, so that what is recorded is what was used."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _explain(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print every setting with its default and its help."""
    if not wanted or ctx.resilient_parsing:
        return
    from train.config import Settings
    from train.rl.settings import RlSettings
    from train.settings_file import leaves

    for key, default, text in leaves(Settings):
        click.echo(f"{key} = {_toml(default)}\n    {text}")
    click.echo("\nWith a table [rl], reinforcement learning:\n")
    for key, default, text in leaves(RlSettings):
        click.echo(f"{key} = {_toml(default)}\n    {text}")
    ctx.exit()


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


@click.command()
@click.argument("settings_file", metavar="SETTINGS.toml", type=FILE, required=False)
@click.option("--config", type=FILE, help="SETTINGS.toml by another name.")
@click.option("-b", "--base", help="Folder of the base checkpoint (model.base).")
@click.option("-a", "--adapter", help="Folder of an adapter to go on from (model.adapter).")
@click.option("-d", "--dataset", help="Dataset folder (data.dataset).")
@click.option("-o", "--out", help="Folder of the adapter to write (output).")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting, as in train.batch=16."
)
@click.option(
    "--explain",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_explain,
    help="List every setting with its default and exit.",
)
@click.option("--dry-run", is_flag=True, help="With a table [rl]: say what would be answered, and stop.")
@console.json_option
def train(
    settings_file: Path | None,
    config: Path | None,
    base: str | None,
    adapter: str | None,
    dataset: str | None,
    out: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Teach a model wafer maps with LoRA, as a TOML file says.

    Where the file has a table [rl] the model learns by reward: it answers the prompts that `wafervlm data
    vqa` wrote, easy ones first, and rubrics and the dies themselves judge what it says (curriculum GSPO).

    Work in progress lies beside the output, in OUT.partial. Interrupt or kill the command and run it again:
    it goes on from the last whole checkpoint to the same result. The Cosmos recipe's sft.toml is understood.
    Started by `accelerate launch` it trains on several GPUs; train.batch is then what each takes at a time.

    \b
    Example:
      wafervlm train train/sft.toml -b runs/nano-base -d runs/data -o runs/adapter
      accelerate launch --multi_gpu -m wafervlm.cli train train/sft.toml -b base -d runs/data -o runs/adapter
      wafervlm train --config train/nano/rl.toml -b base -a runs/adapter -d runs/vqa -o runs/rl
    """
    _stay_offline()
    from train.config import flat_dict, read_settings
    from train.settings_file import read_table

    if (settings_file is None) == (config is None):
        raise UsageError(
            "name the settings file once: wafervlm train SETTINGS.toml, or --config SETTINGS.toml"
        )
    file = typing.cast(Path, settings_file or config)
    named = {"model.base": base, "model.adapter": adapter, "data.dataset": dataset, "output": out}
    given = {key: value for key, value in named.items() if value is not None}
    if "rl" in read_table(file):
        _reinforce(file, overrides, given, dry_run, as_json)
        return
    if dry_run:
        raise UsageError("--dry-run of wafervlm train is for a file with a table [rl]")
    settings, notes = read_settings(file, overrides, given)
    from train import processes
    from train.sft import fine_tune, settled

    if not processes.is_main():
        fine_tune(settings)
        return
    for note in notes:
        console.say(f"from the recipe: {note}")
    console.settings({**flat_dict(settled(settings)), "processes": processes.count()})
    outcome = fine_tune(settings)
    if not outcome.trained_now:
        console.say(f"{outcome.adapter} is complete and was made from the same base, dataset and settings")
    console.result(outcome.summary(), as_json)
    trained = outcome.adapter
    folders = ("-b", settings.model.base, "-a", trained, "-d", settings.data.dataset)
    console.next_command("wafervlm", "merge", *folders, "-o", trained.with_name("merged"))


def _reinforce(
    file: Path, overrides: tuple[str, ...], given: dict[str, str], dry_run: bool, as_json: bool
) -> None:
    from train.rl.gspo import reinforce, settled
    from train.rl.plan import plan
    from train.rl.settings import flat_settings, read_rl_settings

    settings = settled(read_rl_settings(file, overrides, given))
    console.settings(flat_settings(settings))
    if dry_run:
        console.result(plan(settings), as_json)
        return
    outcome = reinforce(settings)
    if not outcome.trained_now:
        console.say(f"{outcome.adapter} is complete and was made from the same inputs and settings")
    elif outcome.best_step == 0:
        console.say("no step was better on held-out prompts than the start: the adapter is as it was there")
    console.result(outcome.summary(), as_json)
    folders = ("-b", settings.model.base, "-a", outcome.adapter, "-d", settings.data.dataset)
    console.next_command("wafervlm", "merge", *folders, "-o", outcome.adapter.with_name("merged"))


@click.command()
@click.option("-b", "--base", required=True, type=FOLDER, help="Folder of the base checkpoint.")
@click.option("-a", "--adapter", required=True, type=FOLDER, help="Folder of the adapter.")
@click.option(
    "-d", "--dataset", required=True, type=FOLDER, help="Dataset folder; its tune part is what the gates use."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Checkpoint folder to write."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="bfloat16",
    show_default=True,
    help="Numbers of the merged weights; merging itself is done in float32.",
)
@click.option(
    "--maps",
    type=click.IntRange(min=1),
    help="Maps that the gates are taken on.  [default: 200; 16 where the merge is streamed]",
)
@click.option(
    "--stream",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Merge tensor by tensor, with one layer in memory; auto does where the base is large.",
)
@device_option
@dry_run_option
@console.json_option
def merge(
    base: Path, adapter: Path, dataset: Path, out: Path, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Merge an adapter into its base and check that the answers stay the same.

    The result is a checkpoint folder that transformers and vLLM load. Where a gate is missed nothing is
    written. A large base is never in memory whole.

    \b
    Example:
      wafervlm merge -b runs/nano-base -a runs/adapter -d runs/data -o runs/merged
    """
    _stay_offline()
    from train.merge import MergeSettings, merge as merge_adapter

    options["device"] = settled_device(options["device"])
    console.settings({"base": base, "adapter": adapter, "dataset": dataset, "out": out, **options})
    if dry_run:
        from train.merge_estimate import estimate

        show_cost(estimate(base, adapter, dataset, MergeSettings(**options)), out, as_json)
        return
    parity = merge_adapter(base, adapter, dataset, out, MergeSettings(**options))
    console.result({"checkpoint": str(out), **parity}, as_json)
    console.next_command("wafervlm", "calibrate", out, "-d", dataset, "-o", out.with_name("gptq"))


def _stay_offline() -> None:
    """Before transformers is imported: a workstation is not asked to look anything up."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
