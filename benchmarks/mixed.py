"""Several patterns on one wafer: nano fine-tuned on MixedWM38's train file, beside trees on features.

    python -m benchmarks.mixed                  # the recipe's whole line, and both judged on the val file
    python -m benchmarks.mixed --trees-only     # the trees alone, in a minute

All are judged on the same wafers of the val file, on none of which anything was trained or chosen. Of the
ways to grow trees the best on these very wafers is compared, which favours the trees. MixedWM38 states no
licence: what is made of it stays where it is made, and only figures are reported.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

from benchmarks.line_stages import Line
from benchmarks.machine import describe_machine
from benchmarks.recipe import Recipe, expand, read_recipe
from benchmarks.several import Bools, compared, judged
from train.cleaning.geometry import geometry_features
from train.progress import track
from train.sources import Rows, read_source
from train.split_files import write_split
from train.splits import split_rows
from wafervlm import console
from wafervlm.answers import truth_of
from wafervlm.errors import UsageError
from wafervlm.loading import load
from wafervlm.task import Task
from wafervlm.wafermap import FAIL, DieGrid

Floats = NDArray[np.float64]

RECIPE, REPORT, SPLIT = Path("train/nano/mixed.toml"), "mixed.json", "mixed_split.json"
STAGES = ("data", "train", "merge", "calibrate", "export")
TREES, CELLS = 600, 13
# Of the train file: to choose adapter, temperature and threshold on; and what a dataset must have.
TUNE_SHARE, TEST_SHARE = 0.1, 0.04


def run(recipe: Recipe, out: Path, *, trees_only: bool = False, trees: int = TREES) -> dict[str, Any]:
    """Do what the module says and write mixed.json into ``out``; return what it holds."""
    source = expand(recipe.data.source)
    task = Line(recipe).dataset().settled_task()
    if not task.multi_label:
        raise UsageError(f"task {task.name!r} of the recipe is not multi-label; name one under data.task")
    val = source.with_name("val.npz")
    for path in (source, val):
        if not path.is_file():
            raise UsageError(f"there is no {path}; set WAFERVLM_DATA to the folder that holds mixedwm38/")
    rows, judging = read_source(source), read_source(val)
    shared = int(np.isin(judging.canonical, rows.canonical).sum())
    if shared:
        raise UsageError(f"{shared} maps of {val.name} are in {source.name} too, turned or mirrored or not")
    truth = truth_of(task, judging.labels.tolist())
    # The source names no lots, and its rows are in no order.
    lots = np.arange(len(truth))
    report: dict[str, Any] = {
        "machine": describe_machine(recipe.line.threads),
        "wafers": {"train": len(rows), "val": len(judging)},
        "models": {},
    }
    answers = {}
    for name, answer, seconds in grown(rows, judging, task, trees):
        answers[name] = answer
        report["models"][name] = {"seconds": seconds, **judged(truth, answer, task.labels, lots)}
    if not trees_only:
        best = max(answers, key=lambda name: report["models"][name]["exact"]["value"])
        bundle, spent = made(recipe, rows)
        for name, answer in predicted(bundle, judging, task).items():
            report["models"][name] = judged(truth, answer, task.labels, lots)
            report[f"{name} against {best}"] = compared(truth, answer, answers[best], lots)
        report["seconds"] = spent
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def grown(rows: Rows, judging: Rows, task: Task, trees: int) -> Iterator[tuple[str, Bools, float]]:
    """The name, answers (N, L) on ``judging`` and seconds of every way to grow ``trees`` trees on ``rows``:
    from the measured features alone or with the coarse picture, each set of classes as a class of its own or
    each class by itself."""
    begun = time.monotonic()
    given, asked = (_features(some) for some in (rows, judging))
    measured = time.monotonic() - begun
    shown = truth_of(task, rows.labels.tolist())
    for kind, taken in (("measured", slice(0, -(CELLS**2))), ("measured and coarse dies", slice(None))):
        for way, target in (("sets", rows.labels), ("classes", shown)):
            begun = time.monotonic()
            forest = ExtraTreesClassifier(trees, random_state=0, n_jobs=1).fit(given[:, taken], target)
            found = forest.predict(asked[:, taken])
            answer = truth_of(task, found.tolist()) if way == "sets" else found.astype(bool)
            yield f"trees on {kind}, {way}", answer, round(measured + time.monotonic() - begun, 1)


def _features(rows: Rows) -> Floats:
    grids = [rows.grid(row) for row in range(len(rows))]
    return np.array([[*geometry_features(dies), *coarse(dies).ravel()] for dies in track(grids, "measure")])


def coarse(dies: DieGrid) -> Floats:
    """The failing share (CELLS, CELLS) of ``dies`` (H, W) in the cells of a coarse picture, else 0."""
    rows, columns = (np.arange(size) * CELLS // size for size in dies.shape)
    cell = (rows[:, None] * CELLS + columns).ravel()
    failing, there = (np.bincount(cell, mask.ravel(), CELLS**2) for mask in (dies == FAIL, dies > 0))
    return np.asarray(failing / np.maximum(there, 1)).reshape(CELLS, CELLS)


def made(recipe: Recipe, rows: Rows) -> tuple[Path, dict[str, float]]:
    """The bundle that the line of ``recipe`` makes of ``rows``, and the seconds of each stage. What stands
    complete already is left as it is."""
    split = recipe.folder / SPLIT
    record = split_rows(
        rows, name="mixed", about="", seed=recipe.line.seed, test_share=TEST_SHARE, tune_share=TUNE_SHARE
    )
    split.parent.mkdir(parents=True, exist_ok=True)
    write_split(record, split)
    line = Line(replace(recipe, data=replace(recipe.data, split=str(split)))).ready()
    spent = {}
    for stage in line.stages():
        if stage.name in STAGES:
            console.say(f"{stage.name}: {stage.does}")
            begun = time.monotonic()
            figures = stage.do()
            spent[stage.name] = round(time.monotonic() - begun, 1)
            console.say(f"    {json.dumps(figures, default=str)}")
    return line.out("export"), spent


def predicted(bundle: Path, judging: Rows, task: Task) -> dict[str, Bools]:
    """Answers (N, L) of ``bundle`` on ``judging``, at its threshold and at one half."""
    with load(bundle) as model:
        wafers = [judging.wafer(row) for row in range(len(judging))]
        parts = [model.predict_batch(wafers[i : i + 16]) for i in track(range(0, len(wafers), 16), "predict")]
    answers = [answer for part in parts for answer in part]
    scores = np.array([[answer.scores[label] for label in task.labels] for answer in answers])
    named = truth_of(task, [answer.label for answer in answers])
    return {"nano": named, "nano, threshold 0.5": scores >= 0.5}


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The figures, a line for each model."""
    for name, found in report["models"].items():
        exact, classes = found["exact"], found["per_class"]
        f1 = "  ".join(f"{label} {of['f1']:.3f}" for label, of in classes.items() if of["f1"] is not None)
        ends = f"{exact['value']:.3f} [{exact['low']:.3f}, {exact['high']:.3f}]"
        yield f"{name}: exact {ends}, macro F1 {found['macro_f1']:.3f}; {f1}"


@click.command(context_settings=console.HELP)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    default=RECIPE,
    show_default=True,
    help="What nano is taught.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder for mixed.json.  [default: the line's]"
)
@click.option("--trees-only", is_flag=True, help="Without nano.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Train so many steps: to try it out.")
@console.json_option
def main(recipe: Path, out: Path | None, trees_only: bool, max_steps: int | None, as_json: bool) -> None:
    """Judge nano and trees on wafers with several patterns, those of MixedWM38.

    \b
    Example:
      python -m benchmarks.mixed
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = read_recipe(recipe)
    if max_steps:
        settings = replace(
            settings,
            train=replace(settings.train, max_steps=max_steps),
            line=replace(settings.line, name=f"{settings.line.name}-{max_steps}"),
        )
    out = out or settings.folder
    console.settings({"recipe": recipe, "out": out, "trees_only": trees_only, "max_steps": max_steps})
    report = run(settings, out, trees_only=trees_only)
    if as_json:
        console.json_line(report)
        return
    for line in table(report):
        click.echo(line)


if __name__ == "__main__":
    main()
