"""Building a dataset folder from labelled wafer maps: ``wafervlm data build``."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from train.artefact import Provenance, folder_digest, is_complete, require_free, write_provenance, writing
from train.dataset import ANNOTATIONS, SPLIT, write_maps
from train.llava import conversations, write_conversations
from train.recipe_protocol import recipe_conversations, recipe_image, recipe_rows, recipe_task
from train.sources import SYNTHETIC, Rows, read_source
from train.sources.rows import Ints, texts
from train.split_files import Split, apply_split, describe_split, read_split_file, split_path, write_split
from train.splits import check_apart, split_rows
from wafervlm import console
from wafervlm.answers import strangers, written
from wafervlm.errors import DatasetError, UsageError
from wafervlm.render import RenderSpec, render
from wafervlm.task import WAFER_DEFECTS, Task

log = logging.getLogger(__name__)

Protocol = Literal["corrected", "recipe"]


@dataclass(frozen=True)
class BuildConfig:
    """What to build.

    ``train``, ``test`` and ``tune`` are how many maps each part gets of each class, or in all when
    ``natural``; None takes all. ``size`` is the image's (height, width) in pixels, the task's own when None.
    ``split`` names a committed split or a split file; without it the source is split anew. ``skip_unknown``
    leaves out maps whose label the task does not have instead of refusing them.
    """

    source: Path
    train: int | None = 100
    test: int | None = 20
    tune: int | None = 20
    size: tuple[int, int] | None = None
    protocol: Protocol = "corrected"
    task: Task = WAFER_DEFECTS
    split: str | None = None
    seed: int = 0
    natural: bool = False
    skip_unknown: bool = False

    def __post_init__(self) -> None:
        if self.protocol not in ("corrected", "recipe"):
            raise UsageError(f"protocol {self.protocol!r} is neither corrected nor recipe")
        for name in ("train", "test", "tune"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count} maps; it must be at least 1, or all")
        if self.protocol == "recipe" and (self.split or self.natural or self.task != WAFER_DEFECTS):
            raise UsageError(
                "the recipe's protocol has its own task and rows; leave out the task, split and natural mix"
            )

    def settled_task(self) -> Task:
        """The task with the image size in effect."""
        if self.protocol == "recipe":
            return recipe_task(*(self.size or (256, 256)))
        if self.size is None:
            return self.task
        return replace(self.task, render=RenderSpec(*self.size, self.task.render.palette))


def build_dataset(config: BuildConfig, out: Path) -> tuple[dict[str, dict[str, int]], bool]:
    """Build the dataset folder ``out``; return its class counts by part, and whether it was built now.

    A complete ``out`` of the same source and settings is left as it is. Raises LeakError where two parts of
    the corrected protocol would share a lot or a map, DatasetError, FileFormatError or UsageError.
    """
    task, out = config.settled_task(), Path(out)
    provenance = _provenance(config, task)
    if is_complete(out, provenance):
        counts = read_split_file(out / SPLIT).counts
        return {part: dict(classes) for part, classes in counts.items()}, False
    require_free(out, provenance)
    rows = known_rows(read_source(config.source, task.render), task, config)
    record = _recipe(rows, config) if config.protocol == "recipe" else _corrected(rows, config, task)
    positions = apply_split(rows, record)
    parts = {part: rows.take(places) for part, places in positions.items()}
    if config.protocol == "corrected":
        check_apart(parts)
    with writing(out) as work:
        write_parts(work, parts, task, config)
        write_split(record, work / SPLIT)
        write_provenance(work, provenance)
    return {part: taken.class_counts() for part, taken in parts.items()}, True


def _provenance(config: BuildConfig, task: Task) -> Provenance:
    drawn = str(config.source) == SYNTHETIC
    if not drawn and not config.source.exists():
        raise DatasetError(
            f"{config.source} does not exist; give a .pkl, a .npz, a folder of class folders, or synthetic"
        )
    inputs = {"source": SYNTHETIC if drawn else folder_digest(config.source)}
    if config.split:
        inputs["split"] = folder_digest(split_path(config.split))
    settings = {**_chosen(config), "skip_unknown": config.skip_unknown, "task": task.to_dict()}
    return Provenance("data", inputs=inputs, settings=settings, seed=config.seed)


def known_rows(rows: Rows, task: Task, config: BuildConfig) -> Rows:
    """The labelled rows of the task's classes, spelled as the task spells them ("edge-loc" is Edge-Loc)."""
    names = {label: written(task, label) or label for label in np.unique(rows.labels).tolist()}
    rows = replace(rows, labels=texts(names[label] for label in rows.labels.tolist()))
    labelled = rows.labels != ""
    known = labelled & ~np.isin(rows.labels, strangers(task, names.values()))
    unknown = rows.labels[labelled & ~known]
    if len(unknown) and config.protocol == "corrected" and not config.skip_unknown:
        raise DatasetError(
            f"{config.source} has {len(unknown)} maps of classes that the task does not have, such as "
            f"{str(unknown[0])!r}; give a task with them, or leave them out with --skip-unknown"
        )
    log.info("%s: %d of %d maps are of the task's classes", config.source, int(known.sum()), len(rows))
    if len(unknown) or not labelled.all():
        without = f"{int((~labelled).sum())} maps without a label"
        console.say(f"{config.source}: {without} and {len(unknown)} of other classes are left out")
    return rows.take(known)


def _recipe(rows: Rows, config: BuildConfig) -> Split:
    parts = recipe_rows(rows, config.train, config.test)
    about = "The rows that the Cosmos recipe's script takes, in file order: train and test share lots."
    return describe_split(rows, parts, name="recipe", about=about, settings=_chosen(config))


def _corrected(rows: Rows, config: BuildConfig, task: Task) -> Split:
    if config.split:
        whole = read_split_file(split_path(config.split))
    else:
        whole = split_rows(rows, name=config.source.stem, about="", seed=config.seed)
    positions = apply_split(rows, whole)
    generator = np.random.default_rng(config.seed)
    wanted = {"train": config.train, "tune": config.tune, "test": config.test}
    parts = {
        part: _choose(
            rows, positions.get(part, np.zeros(0, np.int64)), wanted[part], task, config.natural, generator
        )
        for part in wanted
    }
    about = f"A choice of maps from the parts of split {whole.name!r}: no lot and no map is in two parts."
    return describe_split(rows, parts, name=f"{whole.name}-choice", about=about, settings=_chosen(config))


def _choose(
    rows: Rows, places: Ints, count: int | None, task: Task, natural: bool, generator: np.random.Generator
) -> Ints:
    """``count`` of ``places`` at random for each class, or from all when ``natural``, in source order."""
    if count is None:
        return places
    labels = np.unique(rows.labels[places]).tolist() if task.multi_label else task.labels
    groups = [places] if natural else [places[rows.labels[places] == label] for label in labels]
    drawn = [generator.permutation(group)[:count] for group in groups]
    return np.sort(np.concatenate(drawn))


def _chosen(config: BuildConfig) -> dict[str, Any]:
    return {
        "protocol": config.protocol,
        "seed": config.seed,
        "train": config.train,
        "tune": config.tune,
        "test": config.test,
        "natural": config.natural,
    }


def write_parts(work: Path, parts: Mapping[str, Rows], task: Task, config: BuildConfig) -> None:
    """Write images, dies.npz, task.json and annotations of ``parts`` into the folder ``work``. Raises
    DatasetError as ``train.dataset.write_maps`` does."""
    height, width = task.render.height, task.render.width
    chance = random.Random(config.seed)
    if config.protocol == "recipe":
        images = write_maps(work, parts, task, lambda grid: recipe_image(grid, height, width), count_on=True)
        for part, pairs in images.items():
            # The scripts name images from the part's folder on, which is their media path.
            inside = [(name.split("/", 1)[1], label) for name, label in pairs]
            write_conversations(recipe_conversations(inside, chance), work / ANNOTATIONS / f"{part}.json")
        return
    images = write_maps(work, parts, task, lambda grid: render(grid, task.render))
    for part, pairs in images.items():
        entries = [entry for name, label in pairs for entry in conversations(name, label, task, chance)]
        write_conversations(entries, work / ANNOTATIONS / f"{part}.json")
