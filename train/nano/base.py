"""Train nano's base from scratch: it learns to see wafers, and is told no class.

    python -m train.nano.base --pool ../shared/data/wm811k/train_pool.npz -o runs/nano-base

Maps are those of the train side of the pool, without their labels, and synthetic scenes. Interrupt it
and run it again: it goes on from the last whole checkpoint.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from train.artefact import (
    Provenance,
    folder_digest,
    is_complete,
    replace_folder,
    sync_tree,
    write_provenance,
    writing,
)
from train.nano.config import NANO, build_model_folder, describe, save_processor_files, train_tokenizer
from train.nano.corpus import letter_pieces, repeated_words, segments, tokenizer_texts, turns
from train.patches import patchify
from train.progress import Progress
from train.sources.npz import read_npz
from train.speed import fast_vision
from train.splits import load_split
from train.synthetic import scene
from wafervlm.geometry import measure
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import DieGrid, transform

logger = logging.getLogger(__name__)
Batch = dict[str, torch.Tensor]
IGNORED = -100


@dataclass(frozen=True)
class BaseSettings:
    """How the base is trained: ``steps`` on questions about dies, then ``word_steps`` in which one of the
    questions is to repeat words, beginning at half the learning rate."""

    steps: int = 4000
    word_steps: int = 700
    batch: int = 32
    questions: int = 3
    synthetic: float = 0.3
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 300
    decay: float = 0.3
    save_every: int = 250
    seed: int = 11

    @property
    def total(self) -> int:
        """Steps of both parts."""
        return self.steps + self.word_steps


class Conversations(IterableDataset[Batch]):
    """Batches of conversations about wafers. Batch n depends on the seed and n only: training resumes."""

    def __init__(
        self,
        pool: list[DieGrid],
        weights: NDArray[np.float64],
        tokenizer: Any,
        settings: BaseSettings,
        first: int,
    ) -> None:
        self.pool, self.weights, self.tokenizer = pool, weights, tokenizer
        self.settings, self.first = settings, first
        self.pieces = letter_pieces(tokenizer)
        self.image_tokens = (NANO.image // NANO.patch // 2) ** 2

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        for step in range(self.first, self.settings.total):
            yield self.batch(np.random.default_rng([self.settings.seed, step]), step >= self.settings.steps)

    def batch(self, rng: np.random.Generator, words: bool) -> Batch:
        """One batch, with ``words`` to repeat or not: token ids (B, T), mask, labels and token types alike,
        pixel values, image grid."""
        count = self.settings.batch
        grids = [self._wafer(rng) for _ in range(count)]
        rows = [self._tokens(grid, rng, words) for grid in grids]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.full((count, length), self.tokenizer.pad_token_id)
        labels = torch.full((count, length), IGNORED)
        mask = torch.zeros((count, length), dtype=torch.long)
        for i, (tokens, learned) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            labels[i, : len(tokens)] = torch.tensor(learned)
            mask[i, : len(tokens)] = 1
        images = np.stack([render(grid, RenderSpec(NANO.image, NANO.image)) for grid in grids])
        side = NANO.image // NANO.patch
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
            "pixel_values": patchify(images, NANO.patch, 2),
            "image_grid_thw": torch.tensor([[1, side, side]] * count),
        }

    def _wafer(self, rng: np.random.Generator) -> DieGrid:
        if not self.pool or rng.random() < self.settings.synthetic:
            return scene(rng)
        grid = self.pool[int(rng.choice(len(self.pool), p=self.weights))]
        return transform(grid, int(rng.integers(8)))

    def _tokens(self, grid: DieGrid, rng: np.random.Generator, words: bool) -> tuple[list[int], list[int]]:
        conversation = turns(grid, rng, self.settings.questions)
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
    clustered = np.array([sum(c.size for c in measure(g).clusters) / np.count_nonzero(g) for g in pool])
    weights = 0.2 + np.clip(5 * clustered, 0, 1)
    return np.asarray(weights / weights.sum())


def learning_rate(step: int, settings: BaseSettings) -> float:
    """Linear warm-up, constant, then linear to zero over the last ``decay`` of the steps; then again from
    half the rate to zero while words are repeated."""
    if step >= settings.steps:
        done = step - settings.steps
        return settings.learning_rate * min((done + 1) / 100, 1 - done / settings.word_steps) / 2
    left = (settings.steps - step) / (settings.decay * settings.steps)
    return settings.learning_rate * min((step + 1) / settings.warmup, 1.0, max(left, 0.0))


def train_base(pool_file: Path | None, out: Path, settings: BaseSettings) -> None:
    """Train and write the checkpoint folder ``out``; work in progress lies in ``out`` + ".partial"."""
    inputs = {"pool": folder_digest(pool_file)} if pool_file else {}
    provenance = Provenance("nano-base", inputs, {**asdict(settings), "shape": describe(NANO)}, settings.seed)
    if out.exists() and is_complete(out, provenance):
        logger.info("%s is complete", out)
        return
    partial = out.with_name(out.name + ".partial")
    model, tokenizer, optimizer, step = _start(partial, settings)
    pool = _pool(pool_file) if pool_file else []
    data = Conversations(pool, interest(pool) if pool else np.zeros(0), tokenizer, settings, step)
    _loop(model, optimizer, data, partial, settings, step)
    with writing(out) as folder:
        # Half the size; what is trained on it starts from the rounded weights, so nothing is lost later.
        model.half().save_pretrained(folder)
        save_processor_files(folder, NANO, tokenizer)
        (folder / "log.csv").write_bytes((partial / "log.csv").read_bytes())
        write_provenance(folder, provenance)
    draw_curve(out / "log.csv", out.with_name(f"{out.name}-curve.png"))


def _pool(path: Path) -> list[DieGrid]:
    rows = read_npz(path)
    wanted = np.isin(rows.source_index, load_split("wm811k_pool")["train"])
    return [rows.grid(int(i)) for i in np.flatnonzero(wanted)]


def _start(
    partial: Path, settings: BaseSettings
) -> tuple[Qwen3VLForConditionalGeneration, PreTrainedTokenizerFast, torch.optim.Optimizer, int]:
    checkpoint = partial / "checkpoint"
    if not checkpoint.exists():
        tokenizer = train_tokenizer(tokenizer_texts(settings.seed), NANO.vocabulary)
        with writing(checkpoint) as folder:
            build_model_folder(folder, NANO, tokenizer, settings.seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.config._attn_implementation = model.model.language_model.config._attn_implementation = "eager"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0
    )
    for group in optimizer.param_groups:
        group["weight_decay"] = settings.weight_decay
    step = 0
    if (checkpoint / "optimizer.pt").exists():
        state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        step = int(state["step"])
    return fast_vision(model), tokenizer, optimizer, step


def _loop(
    model: Any,
    optimizer: torch.optim.Optimizer,
    data: Conversations,
    partial: Path,
    settings: BaseSettings,
    first: int,
) -> None:
    bf16 = torch.backends.mkldnn.is_available()
    losses: list[float] = []
    begun = time.monotonic()
    model.train()
    loader = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
    with Progress("base", settings.total, done=first) as progress:
        for step, batch in enumerate(loader, start=first):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = model(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            progress.advance(note=f"loss {np.mean(losses[-50:]):.3f}")
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.total:
                _save(model, data.tokenizer, optimizer, partial, step + 1)
                _log(
                    partial,
                    step + 1,
                    float(np.mean(losses[-settings.save_every :])),
                    time.monotonic() - begun,
                )


def _save(model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, partial: Path, step: int) -> None:
    work = partial / "checkpoint.writing"
    work.mkdir(exist_ok=True)
    model.save_pretrained(work)
    save_processor_files(work, NANO, tokenizer)
    torch.save({"optimizer": optimizer.state_dict(), "step": step}, work / "optimizer.pt")
    sync_tree(work)
    replace_folder(work, partial / "checkpoint")


def _log(partial: Path, step: int, loss: float, seconds: float) -> None:
    path = partial / "log.csv"
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "loss", "seconds"])
        writer.writerow([step, f"{loss:.5f}", f"{seconds:.0f}"])


def draw_curve(log: Path, picture: Path) -> None:
    """Draw the loss over the steps that the table ``log`` holds, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows], marker=".", color="#20908c"
    )
    axes.set(title="nano's base", xlabel="step", ylabel="loss, answer tokens", yscale="log")
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


@click.command()
@click.option(
    "--pool", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="WM-811K maps (.npz)."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the base checkpoint."
)
@click.option("--steps", default=BaseSettings.steps, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(pool: Path | None, output: Path, steps: int, threads: int) -> None:
    """Train nano's base from scratch, without classes.

    Example: python -m train.nano.base --pool ../shared/data/wm811k/train_pool.npz -o runs/nano-base
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    settings = BaseSettings(steps=steps)
    click.echo(json.dumps(asdict(settings)), err=True)
    train_base(pool, output, settings)


if __name__ == "__main__":
    main()
