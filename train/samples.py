"""From a dataset folder to the examples of a training and the held-out maps that judge it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.batches import Example
from train.dataset import ANNOTATIONS, DIES, Sample, read_split
from train.sources.npz import load_arrays
from wafervlm.answers import texts_of
from wafervlm.errors import DatasetError
from wafervlm.task import Task

IMAGE_MARK = "<image>"


def task_examples(samples: Sequence[Sample], task: Task) -> list[Example]:
    """The task's own question about each of ``samples``; of a multi-label task the answer is that about every
    class, one after the other. Raises TaskError for a label it does not have."""
    return [Example(s.wafer, s.label, task.prompt, " ".join(texts_of(task, s.label))) for s in samples]


def annotated_examples(dataset: Path, samples: Sequence[Sample], chosen: Sequence[int]) -> list[Example]:
    """Every question and answer that the annotations of part train have about ``samples[i]`` for ``i`` in
    ``chosen``; ``samples`` is the whole part in its order.

    Only conversations of one question and one answer are taken. Raises DatasetError where an image is not
    of that part or a conversation has another form.
    """
    place = {name: index for index, name in enumerate(_image_names(dataset, "train"))}
    wanted, examples = set(chosen), []
    for entry in _read_annotations(dataset / ANNOTATIONS / "train.json"):
        image = entry.get("image", "")
        # The recipe's annotations name images from the part's folder on.
        index = place.get(image, place.get(f"train/{image}"))
        if index is None:
            raise DatasetError(
                f"annotation {entry.get('id')!r} of {dataset} is about an image that is not in train"
            )
        if index in wanted:
            question, answer = _turns(entry, dataset)
            examples.append(Example(samples[index].wafer, samples[index].label, question, answer))
    return examples


def held_out(dataset: Path, split: str = "tune") -> list[Sample]:
    """The samples of part ``split``, none where the dataset has no such part."""
    parts = set(load_arrays(dataset / DIES, ("split",))["split"].tolist())
    return read_split(dataset, split) if split in parts else []


def at_most(labels: Sequence[str], per_class: int, seed: int) -> list[int]:
    """Indices, ascending, of at most ``per_class`` of each label, drawn by ``seed``; all where it is 0."""
    if per_class == 0:
        return list(range(len(labels)))
    rng = np.random.default_rng([seed, 3])
    members: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    drawn = [rng.permutation(members[label])[:per_class] for label in sorted(members)]
    return sorted(int(index) for index in np.concatenate(drawn)) if drawn else []


def _image_names(dataset: Path, split: str) -> list[str]:
    arrays = load_arrays(dataset / DIES, ("split", "images"))
    return [str(name) for name in arrays["images"][arrays["split"] == split]]


def _read_annotations(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read the annotations {path}: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetError(f"the annotations {path} must be a list of objects")
    return entries


def _turns(entry: dict[str, Any], dataset: Path) -> tuple[str, str]:
    turns = entry.get("conversations", [])
    if not isinstance(turns, list) or [turn.get("from") for turn in turns] != ["human", "gpt"]:
        raise DatasetError(f"annotation {entry.get('id')!r} of {dataset} is not one question and one answer")
    question, answer = (str(turn.get("value", "")) for turn in turns)
    if question.count(IMAGE_MARK) != 1:
        raise DatasetError(f"annotation {entry.get('id')!r} of {dataset} does not hold {IMAGE_MARK} once")
    # The dataset puts one line end between the mark and the text; the rest belongs to the question.
    before, after = question.split(IMAGE_MARK)
    return before.removesuffix("\n") + after.removeprefix("\n"), answer
