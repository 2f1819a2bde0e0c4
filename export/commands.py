"""The command ``wafervlm export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from train.cost_options import dry_run_option, show_cost
from wafervlm import console
from wafervlm.errors import UsageError
from wafervlm.task import Task

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("checkpoint", type=_FOLDER)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Bundle folder to write.")
@click.option(
    "-d",
    "--dataset",
    "tune",
    type=click.Path(exists=True, path_type=Path),
    help="Dataset folder whose tune part fits the temperature, or labelled maps for it.",
)
@click.option(
    "--task",
    "task_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Task file (.json or .toml) that the model was trained on.  [default: the checkpoint's]",
)
@click.option(
    "--golden",
    type=click.Choice(["synthetic", "tune"]),
    default="synthetic",
    show_default=True,
    help="Where golden maps come from; they are passed on with the bundle.",
)
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default="4",
    show_default=True,
    help="What 4-bit products compute in on a CPU: 0 float32 (exact), 4 8-bit integers.",
)
@click.option(
    "--vision",
    type=click.Choice(["float32", "int8"]),
    default="float32",
    show_default=True,
    help="What the vision tower computes in; int8 is faster on a CPU, and not exact.",
)
@click.option(
    "--opset",
    type=click.Choice(["21", "23"]),
    default="23",
    show_default=True,
    help="ONNX operators: 21 for TensorRT before 10.15 (JetPack 6 and 7), which lacks Attention.",
)
@click.option(
    "--words",
    is_flag=True,
    help="Also generate text (wafervlm describe); its graphs share the bundle's weights.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="With --words: tokens of question, image and answer together, at most the model's.",
)
@click.option(
    "--golden-maps",
    type=click.IntRange(min=1),
    help="At most how many golden maps.  [default: two of each label; one of each for a large model]",
)
@click.option("--name", default="", help="Name of the bundle.  [default: the task's]")
@click.option(
    "--wm811k/--no-wm811k",
    default=None,
    help="Whether WM-811K's citations go in.  [default: as the provenance says]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the golden maps.")
@click.option("--replace", is_flag=True, help="Put the bundle in the place of another one that is at OUT.")
@dry_run_option
@console.json_option
def export(
    checkpoint: Path,
    out: Path,
    task_file: Path | None,
    accuracy_level: str,
    opset: str,
    replace: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn CHECKPOINT, merged or quantized, into a bundle: one ONNX graph, golden maps, a manifest.

    The graph's scores must equal the checkpoint's within 1e-3 at exact accuracy, with the vision tower in
    float32, and as deployed it must give the same labels on nine golden maps in ten, else nothing is written.
    A large model is read and written layer by layer; --dry-run says beforehand what that takes. A bundle that
    is at OUT already, of the same inputs and settings, is left as it is; another one needs --replace.

    \b
    Example:
      wafervlm export runs/gptq -d runs/data -o runs/bundle
      wafervlm export runs/gptq -d runs/data -o runs/bundle --words
      wafervlm export runs/gptq -d runs/data -o runs/jetson --opset 21
      wafervlm export runs/gptq -d runs/data -o runs/bundle --dry-run
    """
    from export.stage import ExportConfig, export as run
    from wafervlm.bundle import open_bundle

    task = find_task(task_file, checkpoint, options["tune"])
    options |= {"accuracy_level": int(accuracy_level), "opset": int(opset)}
    config = ExportConfig(checkpoint=checkpoint, task=task, **options)
    console.settings({"checkpoint": checkpoint, "out": out, "task": task.name, **options})
    if dry_run:
        from export.estimate import estimate

        show_cost(estimate(config), out, as_json)
        return
    manifest, written = run(config, out, replace=replace)
    console.say(
        f"wrote {out}" if written else f"{out} is complete and of these inputs already; nothing to do"
    )
    console.result(
        {
            "bundle": str(out),
            "digest": open_bundle(out).digest,
            "precision": manifest.graph.precision,
            "opset": manifest.graph.opset,
            "bytes": sum(entry.size for entry in manifest.files),
            "temperature": manifest.temperature,
            "verify_tolerance": manifest.verify_tolerance,
            "parity": dict(manifest.parity),
        },
        as_json,
    )
    console.next_command("wafervlm", "verify", "--bundle", out)


def find_task(task_file: Path | None, *folders: Path | None) -> Task:
    """The task of ``task_file``, else that of the first of ``folders`` that holds a task.json.

    Raises UsageError where there is none.
    """
    beside = [folder / "task.json" for folder in folders if folder is not None]
    found = task_file or next((path for path in beside if path.is_file()), None)
    if found is None:
        raise UsageError("the task is not known: give --task, or a dataset folder with --dataset")
    return Task.from_file(found)
