"""TRL's GRPOTrainer with what the reinforcement learning of words needs besides: prompts in the curriculum's
order, answers that are a function of the seed and the round, held-out prompts, the best adapter kept, and
checkpoints that survive a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Table
from safetensors.torch import save_file
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from train.checkpoints import writing_checkpoint
from train.rl.curriculum import Curriculum
from train.rl.log import kept_metrics
from train.schedule import Schedule
from train.trainer import BEST, WATCH, Conductor, Evaluate, Tensors, Watch, adapter_tensors

# Of the index of a row: the columns that the trainer and the reward read.
ColumnsOf = Callable[[int], dict[str, Any]]


class RlWatch(Watch):
    """A Watch that takes the higher mean reward on held-out prompts for the better."""

    def is_better(self, found: dict[str, float]) -> bool:
        """Whether ``found`` beats the best evaluation."""
        return not self.best or found["tune_reward"] > self.best["tune_reward"]


class GspoTrainer(GRPOTrainer):  # type: ignore[misc]
    """Trains the adapter of a model on the prompts of ``curriculum``, whose rows ``columns_of`` gives;
    ``evaluate_policy`` returns tune_reward and what else is worth a look. The ``round_steps`` steps of a
    round belong together: it is logged, evaluated and saved between rounds alone, so that a training that
    goes on draws the same answers."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        watch: RlWatch,
        best: Tensors,
        evaluate_policy: Evaluate | None,
        curriculum: Curriculum,
        columns_of: ColumnsOf,
        checkpoints: Path,
        round_steps: int,
        patience: int,
        **trainer: Any,
    ) -> None:
        self.schedule, self.watch, self.best = schedule, watch, best
        self.round_steps = round_steps
        self.evaluate_policy, self._patience = evaluate_policy, patience
        self._curriculum, self._columns_of = curriculum, columns_of
        self._checkpoints = checkpoints
        self._scratch: Path | None = None
        # TRL wants a table where a number is all that a row needs; it gets one row, and then the numbers.
        super().__init__(train_dataset=Table.from_dict({"prompt": ["-"]}), **trainer)
        self.train_dataset = Positions(len(curriculum))
        self._copy_reference()
        self.remove_callback(PrinterCallback)
        self._conductor = RoundConductor(self)
        self.add_callback(self._conductor)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train, showing progress; what the policy is worth before the first step is measured too."""
        try:
            if resume_from_checkpoint is None and self.evaluate_policy is not None:
                self.evaluate()
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self._conductor.close()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Follow ``schedule``."""
        if self.lr_scheduler is None:
            self.lr_scheduler: LambdaLR = LambdaLR(optimizer or self.optimizer, self.schedule.rate)
        return self.lr_scheduler

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Answer the held-out prompts; keep the adapter where it is the best so far, stop where patience
        ends."""
        begun, watch = self.schedule.elapsed, self.watch
        watch.evaluated = self.schedule.evaluations_due(self.state.global_step)
        if self.evaluate_policy is None:
            self.best = adapter_tensors(self.model)
            return self._evaluated({})
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            found = self.evaluate_policy()
        self.model.train(was_training)
        if watch.is_better(found):
            watch.best, watch.since_best = {"step": self.state.global_step, **found}, 0
            self.best = adapter_tensors(self.model)
        else:
            watch.since_best += 1
            if self._patience and watch.since_best >= self._patience:
                self.stop(f"no better in {watch.since_best} evaluations")
        self._keep(found)
        self.schedule.reserve = self.schedule.elapsed - begun
        return self._evaluated(found)

    def _evaluated(self, found: dict[str, float]) -> dict[str, float]:
        # Tells the trainer that the evaluation that was due is done.
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, found
        )
        return found

    def stop(self, why: str) -> None:
        """End the training after this step."""
        self.watch.stopped = why
        self.control.should_training_stop = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the figures of the rounds since the last log as a row."""
        level = self._level
        super().log(logs, start_time)
        if "loss" in logs:
            self._keep({"level": level, **kept_metrics(logs)})

    @property
    def _level(self) -> float:
        done = self.state.global_step // self.round_steps
        return float(self._curriculum.level(max(done * self._prompts - 1, 0)))

    @property
    def _prompts(self) -> int:
        return int(self.args.generation_batch_size // self.args.num_generations)

    def _keep(self, values: dict[str, float]) -> None:
        step = self.state.global_step
        prompts = step // self.round_steps * self._prompts
        seconds = round(self.schedule.elapsed, 1)
        self.watch.rows.append({"step": step, "prompts": prompts, "seconds": seconds, **values})

    def _generate_and_score_completions(self, inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Answer and reward a round. What is drawn is a function of the seed and the round alone."""
        place = self.state.global_step // self.round_steps
        torch.manual_seed(int(np.random.SeedSequence([self.args.seed, 9, place]).generate_state(1)[0]))
        columns = {k: self._columns_of(self._curriculum[k]) for k in {row["position"] for row in inputs}}
        answered: dict[str, Any] = super()._generate_and_score_completions(
            [dict(columns[row["position"]]) for row in inputs]
        )
        return answered

    def _copy_reference(self) -> None:
        """Let the reference adapter hold all that the policy's holds: TRL leaves the embeddings out."""
        model = self.model
        if "ref" not in getattr(model, "peft_config", {}):
            return
        found = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in found.items():
                if name.endswith(".default"):
                    found[name.removesuffix("default") + "ref"].copy_(tensor)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The parent class writes in place, into the folder that _get_output_dir names.
        with writing_checkpoint(self._checkpoints, self.state.global_step) as folder:
            self._scratch = folder / "scratch"
            super()._save_checkpoint(model, trial)
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
        return str(self._scratch) if self._scratch else str(super()._get_output_dir(trial))

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the parent class walks over all modules at every step for it."""
        return 0

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: the adapter's provenance says more than a template would."""

    def _send_telemetry(self) -> None:
        # TRL reports each training to its makers' server; a fab's workstation sends nothing.
        pass


class Positions(Dataset[dict[str, int]]):
    """Rows ``{"position": k}``; the sampler repeats each for every answer of its group."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> dict[str, int]:
        return {"position": k}


class RoundConductor(Conductor):
    """Says after each round what is due."""

    def __init__(self, trainer: GspoTrainer) -> None:
        super().__init__(trainer)
        self._rounds = trainer.round_steps
        self._saved = 0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log at the end of a round; evaluate and save there where it is due."""
        trainer, step = self._trainer, state.global_step
        between = step % self._rounds == 0
        control.should_log = between
        control.should_evaluate = control.should_save = False
        if not between:
            return
        ended = trainer.schedule.progress(step) >= 1.0
        control.should_evaluate = ended or trainer.schedule.evaluations_due(step) > trainer.watch.evaluated
        due = step // args.save_steps > (step - self._rounds) // args.save_steps
        control.should_save = control.should_evaluate or due
        if ended:
            trainer.stop("steps" if step >= state.max_steps else "time limit")

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note the last reward beside the progress."""
        last = state.log_history[-1] if state.log_history else {}
        best = self._trainer.watch.best.get("tune_reward")
        notes = [f"reward {last['reward']:.3f}"] if last.get("reward") is not None else []
        notes += [f"best held-out reward {best:.3f}"] if best is not None else []
        self._note = ", ".join(notes)
