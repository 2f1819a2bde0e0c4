"""Train nano's base from scratch: it learns to see wafers, and is told no class.

First the vision tower learns alone, from everything that can be measured on the dies (``train.nano.sight``);
then the whole model answers questions about them (``train.nano.corpus``).

    python -m train.nano.base --pool ../shared/data/wm811k/train_pool.npz -o runs/nano-base
    python -m train.nano.base --start runs/nano-base --seed 12 --pool ... -o runs/nano-base-2  # for longer

Maps are those of the train side of the pool, without their labels, and synthetic scenes. Interrupt it
and run it again: it goes on from the last whole checkpoint.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from train.artefact import (
    Provenance,
    claim,
    folder_digest,
    is_complete,
    write_provenance,
    writing,
)
from train.commands import device_option, settled_device
from train.nano.config import (
    NANO,
    build_model_folder,
    describe,
    model_config,
    save_processor_files,
    train_tokenizer,
)
from train.nano.corpus import tokenizer_texts
from train.nano.log import COLUMNS, LOG, Row, draw_curve, read_rows, write_rows
from train.nano.plan import BaseSettings, learning_rate
from train.nano.retokenize import retokenized
from train.nano.sight import Sight, features
from train.nano.stream import MEASURED, Batch, Conversations, interest, train_side
from train.progress import Progress
from train.speed import fast_vision
from wafervlm import console
from wafervlm.errors import UsageError, WaferVLMError
from wafervlm.files import flush_tree, replace_folder

logger = logging.getLogger(__name__)
STATE = "optimizer.pt"


def train_base(
    pool_file: Path | None,
    out: Path,
    settings: BaseSettings,
    device: str = "cpu",
    start: Path | None = None,
    vocabulary: int = 0,
) -> None:
    """Train on ``device``, from the weights of the base ``start`` where one is given (under a tokenizer
    trained anew, of at most so many entries, where ``vocabulary`` is not 0), and write the checkpoint
    folder ``out``; work in progress lies in ``out`` + ".partial". Raises UsageError where either
    is there and was made otherwise, or where ``start`` is of another shape."""
    given = {"pool": pool_file, "start": start}
    inputs = {name: folder_digest(path) for name, path in given.items() if path}
    values = {**asdict(settings), "shape": describe(NANO)}
    if vocabulary:
        values["vocabulary"] = vocabulary
    provenance = Provenance("nano-base", inputs, values, settings.seed)
    if out.exists():
        if not is_complete(out, provenance):
            raise UsageError(f"{out} exists already and was not made so; remove it or choose another output")
        logger.info("%s is complete", out)
        return
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    claim(partial, provenance, begun=(partial / "checkpoint").exists())
    training = BaseTraining(pool_file, partial, settings, device, start, vocabulary)
    training.run()
    with writing(out) as folder:
        # Half the size; what is trained on it starts from the rounded weights, so nothing is lost later.
        training.model.half().save_pretrained(folder)
        save_processor_files(folder, NANO, training.tokenizer)
        write_rows(folder / LOG, training.rows)
        write_provenance(folder, provenance)
    draw_curve(training.rows, out.with_name(f"{out.name}-curve.png"))


class BaseTraining:
    """The state of one training, taken up from the checkpoint in ``partial`` where there is one."""

    def __init__(
        self,
        pool_file: Path | None,
        partial: Path,
        settings: BaseSettings,
        device: str,
        start: Path | None = None,
        vocabulary: int = 0,
    ) -> None:
        self.settings, self.device, self.checkpoint = settings, device, partial / "checkpoint"
        if not self.checkpoint.exists():
            with writing(self.checkpoint) as folder:
                _begin(folder, settings, start, vocabulary)
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(self.checkpoint)
        model = Qwen3VLForConditionalGeneration.from_pretrained(self.checkpoint, dtype=torch.float32)
        # Plain products beat the fused attention in bf16 on a CPU (train.speed).
        model.set_attn_implementation("eager")
        self.model: Any = fast_vision(model).to(device)
        pool = train_side(pool_file) if pool_file else []
        self.data = Conversations(pool, interest(pool) if pool else np.zeros(0), self.tokenizer, settings)
        torch.manual_seed(settings.seed)
        self.sight = Sight(NANO, self.data.sample(), settings.choices).to(device)
        self.optimizer = torch.optim.AdamW(
            [*self.model.parameters(), *self.sight.parameters()],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        # What the tower handed over last: a question's step learns from it, too.
        self.seen: deque[torch.Tensor] = deque(maxlen=1)
        if settings.choices:
            self._tower.register_forward_hook(lambda _module, _given, seen: self.seen.append(features(seen)))
        self.rows: list[Row] = []
        if (self.checkpoint / STATE).exists():
            self._take_up()

    @property
    def _tower(self) -> Any:
        return self.model.model.visual

    def run(self) -> None:
        """Train to the end, with a checkpoint every ``save_every`` steps and where a part ends."""
        settings, losses = self.settings, list[float]()
        begun = time.monotonic() - (float(self.rows[-1]["seconds"]) if self.rows else 0)
        self.model.train()
        loader = iter(DataLoader(self.data, batch_size=None, num_workers=1, prefetch_factor=4))
        with Progress("base", settings.total, done=self.data.first) as progress:
            for step, batch in enumerate(loader, start=self.data.first):
                losses.append(self._step(step, batch))
                part = "sight" if settings.sees(step) else "questions"
                progress.advance(note=f"{part}, loss {np.mean(losses[-50:]):.3f}")
                done = step + 1
                if done % settings.save_every == 0 or done in (settings.sight_steps, settings.total):
                    # The two parts have different losses: none is averaged over both.
                    values = done, part, f"{np.mean(losses):.5f}", f"{time.monotonic() - begun:.0f}"
                    self.rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
                    losses.clear()
                    self.save(done)

    def save(self, step: int) -> None:
        """Put the state after ``step`` steps, with the log so far, in place of the checkpoint before."""
        work = self.checkpoint.with_name("checkpoint.writing")
        work.mkdir(exist_ok=True)
        self.model.save_pretrained(work)
        save_processor_files(work, NANO, self.tokenizer)
        state = {"optimizer": self.optimizer.state_dict(), "sight": self.sight.state_dict(), "step": step}
        torch.save(state, work / STATE)
        write_rows(work / LOG, self.rows)
        flush_tree(work)
        replace_folder(work, self.checkpoint)

    def _take_up(self) -> None:
        state = torch.load(self.checkpoint / STATE, weights_only=True, map_location=self.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.sight.load_state_dict(state["sight"])
        self.data.first = int(state["step"])
        self.rows = read_rows(self.checkpoint / LOG)

    def _step(self, step: int, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.settings)
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        measured = {name: batch.pop(name) for name in MEASURED if name in batch}
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=_has_bf16(self.device)):
            if self.settings.sees(step):
                seen = self._tower(batch["pixel_values"], grid_thw=batch["image_grid_thw"])
                loss = self.sight(features(seen), **measured)
            else:
                loss = self.model(**batch, use_cache=False).loss
                if measured:
                    loss = loss + self.sight(self.seen.pop(), **measured)
        loss.backward()
        # Only what stays is kept from jumping, not the heads.
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.item())


def _begin(folder: Path, settings: BaseSettings, start: Path | None, vocabulary: int) -> None:
    """Put into ``folder`` the weights to begin from: those of ``start``, else untrained ones."""
    if start is None:
        tokenizer = train_tokenizer(_texts(settings), vocabulary or NANO.vocabulary)
        build_model_folder(folder, NANO, tokenizer, settings.seed)
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    model = Qwen3VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    wanted = model_config(NANO, tokenizer)
    for part in ("text_config", "vision_config"):
        for name, value in getattr(wanted, part).to_diff_dict().items():
            found = getattr(getattr(model.config, part), name, None)
            if name not in ("dtype", "transformers_version") and found != value:
                raise UsageError(f"{start} is of another shape: {part}.{name} is {found}, nano's is {value}")
    if vocabulary:
        new = train_tokenizer(_texts(settings), vocabulary)
        model, tokenizer = retokenized(model, tokenizer, new, NANO), new
    model.save_pretrained(folder)
    save_processor_files(folder, NANO, tokenizer)


def _texts(settings: BaseSettings) -> Iterator[str]:
    return tokenizer_texts(settings.seed, said=settings.said > 0)


def _has_bf16(device: str) -> bool:
    return bool(torch.cuda.is_bf16_supported() if device == "cuda" else torch.backends.mkldnn.is_available())


@click.command(context_settings=console.HELP)
@click.option(
    "--pool", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="WM-811K maps (.npz)."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the base checkpoint."
)
@click.option(
    "--sight-steps",
    default=BaseSettings.sight_steps,
    show_default=True,
    help="Steps of the vision tower alone.",
)
@click.option("--steps", default=BaseSettings.steps, show_default=True, help="Steps with questions.")
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Base to go on from; with another seed it sees other wafers.  [default: untrained weights]",
)
@click.option("--seed", default=BaseSettings.seed, show_default=True, help="Seed of weights and wafers.")
@click.option(
    "--said",
    type=click.FloatRange(0, 1),
    default=BaseSettings.said,
    show_default=True,
    help="Share of the wafers asked about in the words of descriptions.",
)
@click.option(
    "--choices",
    type=click.FloatRange(0),
    default=BaseSettings.choices,
    show_default=True,
    help="Weight of what descriptions say, as choices, in the loss of the vision tower.",
)
@click.option(
    "--vocabulary",
    type=click.IntRange(min=300),
    help="Train the tokenizer, of so many entries, anew.  [default: that of --start, else nano's size]",
)
@click.option("--threads", default=2, show_default=True, help="Threads that a CPU computes with.")
@device_option
def main(
    pool: Path | None,
    output: Path,
    sight_steps: int,
    steps: int,
    start: Path | None,
    seed: int,
    said: float,
    choices: float,
    vocabulary: int | None,
    threads: int,
    device: str,
) -> None:
    """Train nano's base from scratch, without classes.

    \b
    Example:
      python -m train.nano.base --pool ../shared/data/wm811k/train_pool.npz -o runs/nano-base
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    settings = BaseSettings(sight_steps=sight_steps, steps=steps, seed=seed, said=said, choices=choices)
    device = settled_device(device)
    click.echo(json.dumps({**asdict(settings), "device": device}), err=True)
    try:
        train_base(pool, output, settings, device, start, vocabulary or 0)
    except WaferVLMError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
