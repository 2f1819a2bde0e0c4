"""What nano's base is shown, step by step: wafers with what is measured on them, then conversations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from train.augment import strongly
from train.nano.choices import wafer_choices
from train.nano.config import NANO
from train.nano.corpus import letter_pieces, repeated_words, said_turns, segments, turns
from train.nano.plan import BaseSettings
from train.nano.raw_clusters import sight
from train.nano.sight import targets
from train.patches import patchify
from train.sources.npz import read_npz
from train.splits import load_split
from train.synthetic import scene
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import DieGrid

Batch = dict[str, torch.Tensor]
IGNORED = -100
# Of a batch what the vision tower is to tell: see train.nano.targets and train.nano.choices.
MEASURED = ("local", "whole", "chosen")


class Conversations(IterableDataset[Batch]):
    """Batches of wafers with what is measured on them, then of conversations about wafers. Batch n depends on
    the seed and n only: training resumes."""

    def __init__(
        self,
        pool: list[DieGrid],
        weights: NDArray[np.float64],
        tokenizer: Any,
        settings: BaseSettings,
        first: int = 0,
    ) -> None:
        self.pool, self.weights, self.tokenizer = pool, weights, tokenizer
        self.settings, self.first = settings, first
        self.pieces = letter_pieces(tokenizer)
        self.image_tokens = (NANO.image // NANO.patch // 2) ** 2

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        for step in range(self.first, self.settings.total):
            rng = np.random.default_rng([self.settings.seed, step])
            grids = [self._wafer(rng) for _ in range(self.settings.batch)]
            batch = self._images(grids)
            if self.settings.sees(step) or self.settings.choices:
                batch |= self._measured(grids)
            if not self.settings.sees(step):
                batch |= self._text(grids, rng, self.settings.repeats(step))
            yield batch

    def sample(self, count: int = 1000) -> list[DieGrid]:
        """``count`` wafers as the training shows them."""
        rng = np.random.default_rng([self.settings.seed, 0, 1])
        return [self._wafer(rng) for _ in range(count)]

    def _images(self, grids: list[DieGrid]) -> Batch:
        images = np.stack([render(grid, RenderSpec(NANO.image, NANO.image)) for grid in grids])
        side = NANO.image // NANO.patch
        return {
            "pixel_values": patchify(images, NANO.patch, 2),
            "image_grid_thw": torch.tensor([[1, side, side]] * len(grids)),
        }

    def _measured(self, grids: list[DieGrid]) -> Batch:
        local, whole = targets(grids, NANO)
        if not self.settings.choices:
            return {"local": local, "whole": whole}
        chosen = np.stack([wafer_choices(grid) for grid in grids])
        return {"local": local, "whole": whole, "chosen": torch.from_numpy(chosen)}

    def _text(self, grids: list[DieGrid], rng: np.random.Generator, words: bool) -> Batch:
        """Conversations, with ``words`` to repeat or not: token ids (B, T), mask, labels, token types."""
        count = len(grids)
        rows = [self._tokens(grid, rng, words) for grid in grids]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((count, length), self.tokenizer.pad_token_id)
        labels = torch.full((count, length), IGNORED)
        mask = torch.zeros((count, length), dtype=torch.long)
        for i, (tokens, learned) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, : len(tokens)] = torch.tensor(learned)
            mask[i, : len(tokens)] = 1
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
        }

    def _wafer(self, rng: np.random.Generator) -> DieGrid:
        if not self.pool or rng.random() < self.settings.synthetic:
            return scene(rng)
        return strongly(self.pool[int(rng.choice(len(self.pool), p=self.weights))], rng)

    def _tokens(self, grid: DieGrid, rng: np.random.Generator, words: bool) -> tuple[list[int], list[int]]:
        said = self.settings.said > 0 and rng.random() < self.settings.said
        conversation = said_turns(grid, rng, self.settings.questions) if said else []
        # Of a wafer without a pattern the words of descriptions may have no answer.
        conversation = conversation or turns(grid, rng, self.settings.questions)
        if words:
            conversation[int(rng.integers(len(conversation)))] = repeated_words(self.pieces, rng)
        ids: list[int] = []
        labels: list[int] = []
        for text, learned in segments(conversation, self.image_tokens, bool(rng.integers(2))):
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            labels += piece if learned else [IGNORED] * len(piece)
        return ids, labels


def interest(pool: list[DieGrid]) -> NDArray[np.float64]:
    """How often to show each map: those whose failing dies cluster more often, judged by the dies alone."""
    clustered = np.array([sum(c.size for c in sight(g).clusters) / np.count_nonzero(g) for g in pool])
    weights = 0.2 + np.clip(5 * clustered, 0, 1)
    return np.asarray(weights / weights.sum())


def train_side(path: Path) -> list[DieGrid]:
    """The die grids of the train side of WM-811K's pool in the file ``path``, without their labels."""
    rows = read_npz(path)
    wanted = np.isin(rows.source_index, load_split("wm811k_pool")["train"])
    return [rows.grid(int(i)) for i in np.flatnonzero(wanted)]
