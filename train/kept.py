"""What every trainer of an adapter keeps: a schedule that may follow the clock, what was seen so far, the
best adapter, and checkpoints that survive a kill. Nothing of a training is sent anywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import TrainerControl

from train import processes
from train.checkpoints import writing_together
from train.schedule import Schedule

Tensors = dict[str, torch.Tensor]

WATCH, BEST = "watch.json", "best.safetensors"


@dataclass
class Watch:
    """What a training remembers beside the trainer's own state; each checkpoint holds it."""

    elapsed: float = 0.0
    evaluated: int = 0
    since_best: int = 0
    stopped: str = ""
    best: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def read(cls, checkpoint: Path) -> tuple[Self, Tensors]:
        """The state that ``checkpoint`` holds, and the best adapter's tensors so far."""
        best = checkpoint / BEST
        watch = cls(**json.loads((checkpoint / WATCH).read_text(encoding="utf-8")))
        return watch, load_file(best) if best.exists() else {}

    def is_better(self, found: dict[str, float]) -> bool:
        """Whether ``found`` beats the best evaluation: higher accuracy, at equal accuracy lower loss; with
        words a lower sum of the losses of classes and words."""
        return not self.best or _rank(found) > _rank(self.best)


class KeepsAdapter:
    """The part of a trainer of transformers, of which it is a base before the trainer's own, that looks after
    ``schedule``, ``watch``, the ``best`` adapter so far and the folder of ``checkpoints``."""

    model: Any
    args: Any
    state: Any
    optimizer: Any
    lr_scheduler: LambdaLR | None
    callback_handler: Any
    control: TrainerControl

    def keep(self, schedule: Schedule, watch: Any, best: Tensors, checkpoints: Path) -> None:
        """Begin with what is known; call it before the trainer's own beginning."""
        self.schedule, self.watch, self.best = schedule, watch, best
        self._checkpoints = checkpoints
        self._scratch: Path | None = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Follow ``schedule``."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule.rate)
        return self.lr_scheduler

    def evaluated(self, found: dict[str, float]) -> dict[str, float]:
        """Tell the trainer that the evaluation that was due is done."""
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def judge(self, found: dict[str, float], patience: int) -> None:
        """Keep the adapter where ``found`` is the best evaluation so far, stop where ``patience`` ends."""
        watch = self.watch
        if watch.is_better(found):
            watch.best, watch.since_best = {"step": self.state.global_step, **found}, 0
            self.best = adapter_tensors(self.model)
            return
        watch.since_best += 1
        if patience and watch.since_best >= patience:
            self.stop(f"no better in {watch.since_best} evaluations")

    def stop(self, why: str) -> None:
        """End the training after this step."""
        self.watch.stopped = why
        self.control.should_training_stop = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The parent class writes in place, into the folder that _get_output_dir names.
        with writing_together(self._checkpoints, self.state.global_step) as folder:
            self._scratch = folder / "scratch"
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            processes.wait()
            if processes.is_main():
                self._complete(folder, self._scratch)
        self._scratch = None

    def _complete(self, folder: Path, scratch: Path) -> None:
        """Move what the parent class wrote to ``folder``, and add what it does not know of."""
        (written,) = scratch.iterdir()
        for path in written.iterdir():
            path.rename(folder / path.name)
        shutil.rmtree(scratch)
        self.watch.elapsed = self.schedule.elapsed
        (folder / WATCH).write_text(json.dumps(asdict(self.watch)), encoding="utf-8")
        if self.best:
            save_file(self.best, folder / BEST)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._scratch) if self._scratch else str(super()._get_output_dir(trial))  # type: ignore[misc]

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the parent class walks over all modules at every step for it."""
        return 0

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the adapter's provenance says more than a template would."""

    def _send_telemetry(self) -> None:
        # TRL reports each training to its makers' server; a fab's workstation sends nothing.
        pass


class Positions(Dataset[dict[str, int]]):
    """Rows ``{"position": k}``: what they stand for is looked up by place."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> dict[str, int]:
        return {"position": k}


def adapter_tensors(model: Any) -> Tensors:
    """A copy of the adapter's tensors on the CPU, by the names that an adapter file has. Tensors that are
    spread over processes are brought together, which every process must call for."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in state.items()}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in whole.items()}


def _rank(found: dict[str, float]) -> tuple[float, float]:
    if "tune_words_loss" in found:
        # Neither may be had at the cost of the other.
        return -found["tune_loss"] - found["tune_words_loss"], 0.0
    return found["tune_accuracy"], -found["tune_loss"]
