"""Batches for fine-tuning: which map comes when, in which symmetry, and as which tensors.

The k-th map of a training is a function of the seed and k alone, so that an interrupted training goes on
with the very map it would have seen. Prompts are tokenised once per question and answer; only the answer,
with the token that ends the turn, carries a label for the loss.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.augment import SYMMETRIES, strongly
from train.encoding import check_image_size, prompt_text
from train.loading import Checkpoint
from train.patches import patchify
from train.wording import Wording
from wafervlm.errors import DatasetError, TaskError
from wafervlm.render import RenderSpec, RgbImage, render
from wafervlm.task import Task
from wafervlm.wafermap import DieGrid, WaferMap, transform

IGNORED = -100
# So many answers in words hold all tokens of the wording's vocabulary.
_WORDS_READ = 1000
Batch = dict[str, torch.Tensor]
# Token ids of a conversation, and the index of the answer's first.
Turn = tuple[tuple[int, ...], int]

# Words that stop being true when the wafer is turned or mirrored.
_DIRECTION = re.compile(
    r"\b(o'?clock|clockwise|left\w*|right\w*|top|bottom|upper|lower|above|below|north\w*|south\w*|east\w*|west\w*"
    r"|horizontal\w*|vertical\w*|rows?|columns?|quadrants?|hours?)\b|\bclock\s+position",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Example:
    """One wafer map with a ``question`` and its ``answer``; ``label`` is the class it counts for."""

    wafer: WaferMap
    label: str
    question: str
    answer: str

    @property
    def turns(self) -> bool:
        """Whether question and answer stay true when the wafer is turned or mirrored."""
        return not names_direction(f"{self.question}\n{self.answer}")


def names_direction(text: str) -> bool:
    """Whether ``text`` names a direction or a place that a rotation or a mirror would move."""
    return _DIRECTION.search(text) is not None


class Order:
    """The order in which ``count`` examples are shown, without end: ``order[k]`` is (example, symmetry).

    With ``balance`` every run of as many maps as there are classes holds each class once; a class begins
    anew, reshuffled, when all its maps were shown. Without it the examples are shuffled as a whole. The
    symmetry is drawn from 0 to 7, and 0 where ``turnable``, one for each example, is False. Raises
    DatasetError without examples.
    """

    def __init__(self, labels: Sequence[str], turnable: Sequence[bool], seed: int, balance: bool) -> None:
        if not labels:
            raise DatasetError("there is no map to train on")
        names = np.asarray(labels) if balance else np.zeros(len(labels), dtype=int)
        self._groups = [np.flatnonzero(names == name) for name in np.unique(names)]
        self.turnable, self._seed = np.asarray(turnable, dtype=bool), seed
        # One whole shuffle of the widest class and of the classes is held at a time.
        self._shuffled = functools.lru_cache(maxsize=4 * len(self._groups) + 4)(self._shuffle)

    def __getitem__(self, k: int) -> tuple[int, int]:
        block, place = divmod(k, len(self._groups))
        group = int(self._shuffled(0, block, len(self._groups))[place])
        members = self._groups[group]
        cycle, slot = divmod(block, len(members))
        index = int(members[self._shuffled(1 + group, cycle, len(members))[slot]])
        turn = int(np.random.default_rng([self._seed, 2, k]).integers(SYMMETRIES))
        return index, turn if self.turnable[index] else 0

    def _shuffle(self, stream: int, cycle: int, count: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, 1, stream, cycle]).permutation(count)


class Collator:
    """Turns positions of an Order into the tensors that the model trains on.

    ``__call__`` takes rows ``{"position": k}`` and returns input_ids, attention_mask, labels and
    mm_token_type_ids, each (B, T) int64, pixel_values (B * patches, channels * 2 * patch * patch) float32
    and image_grid_thw (B, 3). Shorter rows are padded on the right. With a seed ``strong`` every map that
    the order may turn is augmented strongly. ``wording`` makes some of the batches ask for words.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: Task,
        examples: Sequence[Example],
        order: Order,
        max_length: int,
        strong: int | None = None,
        wording: Wording | None = None,
    ) -> None:
        self._examples, self._order, self._task, self._strong = examples, order, task, strong
        self._wording = wording
        self._pixels = Pixels(checkpoint.processor, task.render)
        self._pad = int(checkpoint.tokenizer.pad_token_id)
        self._image_token = int(checkpoint.processor.image_token_id)
        self._tokens = functools.partial(tokenize_turn, checkpoint.processor, task, max_length=max_length)
        self._known = functools.cache(self._tokens)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        shown = [self._shown(int(row["position"])) for row in rows]
        images = [render(dies, self._task.render) for dies, _ in shown]
        return {**self._text([turn for _, turn in shown]), **self._pixels(images)}

    def answer_tokens(self) -> list[int]:
        """Ids, ascending, of the tokens that occur in an answer; of words, in the first ones written."""
        turns = [self._known(example.question, example.answer) for example in self._examples]
        turns += [self._tokens(*said) for said in self._first_words()]
        return sorted({token for ids, opening in turns for token in ids[opening:]})

    def _first_words(self) -> Iterator[tuple[str, str]]:
        if self._wording is None:
            return
        for position in range(_WORDS_READ):
            if row := self._wording.drawn(position):
                yield row.question, row.answer
            else:
                example = self._examples[self._order[position][0]]
                said = self._wording.written(position, example.wafer.dies, example.label)
                yield said or (example.question, example.answer)

    def _shown(self, position: int) -> tuple[DieGrid, Turn]:
        """The dies that are shown at ``position``, and the tokens of what is asked and answered."""
        example = self._examples[self._order[position][0]]
        if self._wording is None or not self._wording.asks(position):
            return self._dies(position), self._known(example.question, example.answer)
        if row := self._wording.drawn(position):
            return row.wafer.dies, self._tokens(row.question, row.answer)
        dies = self._dies(position)
        said = self._wording.written(position, dies, example.label)
        return dies, self._tokens(*said) if said else self._known(example.question, example.answer)

    def _dies(self, position: int) -> DieGrid:
        index, turn = self._order[position]
        dies = self._examples[index].wafer.dies
        if self._strong is not None and self._order.turnable[index]:
            return strongly(dies, np.random.default_rng([self._strong, 5, position]))
        return transform(dies, turn)

    def _text(self, turns: Sequence[Turn]) -> Batch:
        shape = len(turns), max(len(ids) for ids, _ in turns)
        ids, mask = torch.full(shape, self._pad), torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORED)
        for row, (tokens, opening) in enumerate(turns):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, opening : len(tokens)] = ids[row, opening : len(tokens)]
            mask[row, : len(tokens)] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "mm_token_type_ids": (ids == self._image_token).long(),
        }


class Pixels:
    """Images of one size to pixel_values and image_grid_thw.

    The vectorised path is taken where it gives, on a probe image, exactly what ``processor`` gives; else
    the processor does each batch. Raises TaskError where the processor would resample the image.
    """

    def __init__(self, processor: Any, spec: RenderSpec) -> None:
        self._processor = processor.image_processor
        self._patch, self._merge = int(self._processor.patch_size), int(self._processor.merge_size)
        check_image_size(processor, spec.height, spec.width)
        probe = np.random.default_rng(0).integers(0, 256, (spec.height, spec.width, 3)).astype(np.uint8)
        exact = self._processed([probe])
        self._grid = exact["image_grid_thw"]
        self._mean, self._std = list(self._processor.image_mean), list(self._processor.image_std)
        self.vectorised = self._agrees(probe, exact["pixel_values"])

    def __call__(self, images: Sequence[RgbImage]) -> Batch:
        if not self.vectorised:
            return self._processed(images)
        return {
            "pixel_values": self._fast(np.stack(images)),
            "image_grid_thw": self._grid.repeat(len(images), 1),
        }

    def _processed(self, images: Sequence[RgbImage]) -> Batch:
        return dict(
            self._processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        )

    def _agrees(self, probe: RgbImage, exact: torch.Tensor) -> bool:
        return torch.allclose(self._fast(probe[None]), exact.float(), rtol=0, atol=1e-6)

    def _fast(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return patchify(images, self._patch, self._merge, self._mean, self._std)


def tokenize_turn(
    processor: Any, task: Task, question: str, answer: str, *, max_length: int
) -> tuple[tuple[int, ...], int]:
    """Token ids of one question, the image and its answer up to the token that ends the turn, and the index
    of the answer's first token. Question and answer are tokenised together, as the label tree does.

    Raises TaskError where the answer merges with the prompt or the whole is longer than ``max_length``.
    """
    before = prompt_text(processor, replace(task, prompt=question))
    whole = before + answer + processor.tokenizer.eos_token
    blank = np.zeros((task.render.height, task.render.width, 3), dtype=np.uint8)
    prompt, ids = (tuple(processor(text=[text], images=[blank])["input_ids"][0]) for text in (before, whole))
    if ids[: len(prompt)] != prompt:
        raise TaskError(
            f"the answer {answer!r} merges with the prompt before it into one token; change its beginning"
        )
    if len(ids) > max_length:
        raise TaskError(
            f"the conversation {question[:40]!r}... is {len(ids)} tokens long; raise model.max_length, "
            f"now {max_length}, or render smaller images"
        )
    return ids, len(prompt)
