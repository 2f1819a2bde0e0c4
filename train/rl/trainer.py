"""TRL's GRPOTrainer with what the reinforcement learning of words needs besides: prompts in the curriculum's
order, answers that are a function of the seed and the round, held-out prompts, the best adapter kept, and
checkpoints that survive a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Table
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from train.kept import KeepsAdapter, Positions, Tensors, Watch, adapter_tensors
from train.rl.curriculum import Curriculum
from train.rl.log import kept_metrics
from train.schedule import Schedule
from train.trainer import Conductor, Evaluate

# Of the index of a row: the columns that the trainer and the reward read.
ColumnsOf = Callable[[int], dict[str, Any]]


class RlWatch(Watch):
    """A Watch that takes the higher mean reward on held-out prompts for the better."""

    def is_better(self, found: dict[str, float]) -> bool:
        """Whether ``found`` beats the best evaluation."""
        return not self.best or found["tune_reward"] > self.best["tune_reward"]


class GspoTrainer(KeepsAdapter, GRPOTrainer):  # type: ignore[misc]
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
        self.keep(schedule, watch, best, checkpoints)
        self.round_steps = round_steps
        self.evaluate_policy, self._patience = evaluate_policy, patience
        self._curriculum, self._columns_of = curriculum, columns_of
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

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Answer the held-out prompts; keep the adapter where it is the best so far, stop where patience
        ends."""
        begun, watch = self.schedule.elapsed, self.watch
        watch.evaluated = self.schedule.evaluations_due(self.state.global_step)
        if self.evaluate_policy is None:
            self.best = adapter_tensors(self.model)
            return self.evaluated({})
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            found = self.evaluate_policy()
        self.model.train(was_training)
        self.judge(found, self._patience)
        self._keep(found)
        self.schedule.reserve = self.schedule.elapsed - begun
        return self.evaluated(found)

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


class RoundConductor(Conductor):
    """Says after each round what is due."""

    def __init__(self, trainer: GspoTrainer) -> None:
        super().__init__(trainer)
        self._rounds = trainer.round_steps

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
