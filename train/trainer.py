"""TRL's SFTTrainer with what a wafer fine-tuning needs besides: accuracy on held-out maps, early stop, the
best adapter kept, a schedule that may follow the clock, and checkpoints that survive a kill."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as Table
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from train import processes
from train.batches import IGNORED, Batch
from train.kept import KeepsAdapter, Positions, Tensors, Watch, adapter_tensors
from train.progress import Progress
from train.schedule import Schedule
from wafervlm.errors import MissingDependencyError

Evaluate = Callable[[], dict[str, float]]


class AdapterTrainer(KeepsAdapter, SFTTrainer):  # type: ignore[misc]
    """Trains an adapter on ``positions`` maps, one after the other; ``evaluate_maps`` returns tune_accuracy,
    tune_recall and tune_loss; on the batches of ``evaluate_words`` the loss of the words is measured."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        watch: Watch,
        best: Tensors,
        evaluate_maps: Evaluate | None,
        evaluate_words: Callable[[], Iterator[Batch]] | None = None,
        checkpoints: Path,
        positions: int,
        patience: int,
        tensorboard: Path | None = None,
        **trainer: Any,
    ) -> None:
        self.keep(schedule, watch, best, checkpoints)
        self._evaluate_maps, self._patience = evaluate_maps, patience
        self._evaluate_words = evaluate_words
        # TRL wants a table where a number is all that a row needs; it gets one row, and then the numbers.
        super().__init__(train_dataset=Table.from_dict({"position": [0]}), **trainer)
        self.train_dataset = Positions(positions)
        self.remove_callback(PrinterCallback)
        self._conductor = Conductor(self)
        self.add_callback(self._conductor)
        self._events = _event_writer(tensorboard, watch) if tensorboard and processes.is_main() else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, showing progress."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._conductor.close()
            if self._events:
                self._events.close()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the held-out maps; keep the adapter where it is the best so far, stop where patience ends."""
        begun, watch = self.schedule.elapsed, self.watch
        watch.evaluated = self.schedule.evaluations_due(self.state.global_step)
        if self._evaluate_maps is None:
            self.best = adapter_tensors(self.model)
            return self.evaluated({})
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            found = {**self._evaluate_maps(), **self._words()}
        self.judge(found, self._patience)
        self._keep(found)
        self.schedule.reserve = self.schedule.elapsed - begun
        return self.evaluated(found)

    def _words(self) -> dict[str, float]:
        """tune_words_loss, nats per token of the answers in words."""
        if self._evaluate_words is None:
            return {}
        losses = [self.compute_loss(self.model, self._prepare_inputs(b)) for b in self._evaluate_words()]
        return {"tune_words_loss": float(torch.stack(losses).mean())}

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean negative log-probability of the answers' tokens.

        The parent class scores every position with the output head's own weight: that costs more, and
        passes over an adapter on the embeddings that the head is tied to.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        learned = labels != IGNORED
        first = int(learned.any(dim=0).int().argmax())
        kept = labels.shape[1] - first + 1
        logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits[:, :-1]
        loss = F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels[:, first:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        share = loss / (processes.summed(learned.sum()) if num_items_in_batch is None else num_items_in_batch)
        # The count is that of all processes together, and their gradients are averaged, not added.
        return share * processes.count() if processes.count() > 1 else share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep loss, learning rate and gradient norm as a row of the log."""
        if "loss" in logs:
            kept = ("loss", "learning_rate", "grad_norm")
            self._keep({key: float(logs[key]) for key in kept if key in logs})
        super().log(logs, start_time)

    def _keep(self, values: dict[str, float]) -> None:
        step = self.state.global_step
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        samples = step * batch * processes.count()
        seconds = round(self.schedule.elapsed, 1)
        self.watch.rows.append({"step": step, "samples": samples, "seconds": seconds, **values})
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)


class Conductor(TrainerCallback):  # type: ignore[misc]
    """Says after each step what is due: log, evaluation, checkpoint, end. Shows progress."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self._trainer, self._shown, self._note = trainer, 0, ""
        self._bar: Progress | None = None

    def close(self) -> None:
        """End the progress, whether or not the training came to its end."""
        if self._bar is not None:
            self._bar.__exit__(*sys.exc_info())
            self._bar = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer.schedule.start()
        by_clock = self._trainer.schedule.limit_seconds > 0
        title = "train, per mille of the time" if by_clock else "train"
        self._steps = 1000 if by_clock else state.max_steps
        self._shown = self._done(state)
        if processes.is_main():
            self._bar = Progress(title, self._steps, done=self._shown)
            self._bar.__enter__()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer, step = self._trainer, state.global_step
        ended = trainer.schedule.progress(step) >= 1.0
        control.should_evaluate = ended or trainer.schedule.evaluations_due(step) > trainer.watch.evaluated
        control.should_save = control.should_evaluate or step % args.save_steps == 0
        # A checkpoint always closes a row of the log, so that a resumed log has the same rows.
        control.should_log = control.should_save or step % args.logging_steps == 0
        if ended:
            trainer.stop("steps" if step >= state.max_steps else "time limit")

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        rows = self._trainer.watch.rows
        loss = next((row["loss"] for row in reversed(rows) if "loss" in row), None)
        best = self._trainer.watch.best.get("tune_accuracy")
        notes = [f"step {state.global_step}"] if self._trainer.schedule.limit_seconds else []
        notes += [f"loss {loss:.3f}"] if loss is not None else []
        notes += [f"best tune accuracy {best:.3f}"] if best is not None else []
        self._note = ", ".join(notes)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._show(state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._show(state)

    def _show(self, state: TrainerState) -> None:
        done = self._done(state)
        if self._bar is not None:
            self._bar.advance(done - self._shown, self._note)
        self._shown = done

    def _done(self, state: TrainerState) -> int:
        return round(self._trainer.schedule.progress(state.global_step) * self._steps)


def _event_writer(folder: Path, watch: Watch) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDependencyError(
            "train.tensorboard is true and tensorboard is not installed; pip install tensorboard, or set it "
            "to false"
        ) from None
    done = int(watch.rows[-1]["step"]) if watch.rows else 0
    return SummaryWriter(str(folder), purge_step=done + 1)
