"""Putting a reinforcement learning together: policy, prompts, curriculum, reward, held-out rows and
trainer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from train.assembly import lora_config
from train.config import Settings
from train.dataset import Sample, dataset_task
from train.loading import Checkpoint, load_checkpoint
from train.rl.curriculum import Curriculum
from train.rl.evaluate import answer_greedily, classification, judged
from train.rl.prompts import Prompts
from train.rl.reward import PARTS, Judge, Reward, RuleJudge
from train.rl.rows import PolicyRow, chosen_rows, read_policy_rows
from train.rl.settings import RlSettings
from train.rl.trainer import GspoTrainer, RlWatch
from train.rubrics.formula import FORMULAS
from train.samples import at_most, held_out
from train.schedule import Schedule
from train.speed import fast_vision
from train.trainer import Evaluate
from train.work import CHECKPOINTS
from wafervlm.errors import DatasetError, TaskError
from wafervlm.task import Task

logger = logging.getLogger(__name__)

# The longest prompts are among those of this many rows with the longest questions.
_LENGTHS_READ = 8


@dataclass(frozen=True)
class Course:
    """What is learned from: the ``train`` rows in the order of ``curriculum``, the ``tune`` rows that
    judge, and how many optimizer ``steps`` that makes."""

    train: Sequence[PolicyRow]
    tune: Sequence[PolicyRow]
    curriculum: Curriculum
    steps: int


def read_course(settings: RlSettings) -> Course:
    """Read the rows that ``settings`` name. Raises DatasetError."""
    folder = Path(settings.data.dataset)
    parts = read_policy_rows(
        folder,
        settings.data.dimension,
        claims=settings.reward.claims > 0,
        descriptions=settings.data.descriptions,
        formula=FORMULAS[settings.reward.formula],
    )
    if "train" in parts:
        parts["train"].check_not_emptied(folder)
    train = parts["train"].rows if "train" in parts else []
    if not train:
        raise DatasetError(
            f"{folder} has no prompt of part train and dimension {settings.data.dimension} to learn from"
        )
    absent = [name for name, count in parts["train"].counts().items() if not count]
    if absent:
        logger.warning("the curriculum goes without %s: part train has no such row", " and ".join(absent))
    tune = chosen_rows(
        parts["tune"].rows if "tune" in parts else [], settings.data.tune_rows, settings.train.seed
    )
    rounds = _rounds(settings, len(train))
    curriculum = Curriculum(
        [row.row.difficulty for row in train],
        [row.label for row in train],
        rounds * settings.rl.prompts,
        settings.train.seed,
        settings.data.balance,
    )
    return Course(train, tune, curriculum, rounds * settings.round_steps)


def assemble(
    settings: RlSettings, partial: Path, resume: Path | None, judge: Judge | None = None
) -> tuple[GspoTrainer, Task]:
    """The trainer of ``settings`` with the dataset's task; it works in ``partial`` and takes up what the
    checkpoint ``resume`` remembers. ``judge`` judges answers in place of the rubrics and the dies.

    Raises DatasetError, CheckpointError or TaskError.
    """
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    watch, best = RlWatch.read(resume) if resume else (RlWatch(), {})
    course, task = read_course(settings), dataset_task(Path(settings.data.dataset))
    checkpoint = _policy(settings)
    prompts = Prompts(checkpoint.processor, task, tags=settings.rl.tags)
    _check_lengths(settings, prompts, course)
    judge = judge or RuleJudge(settings.reward, settings.rl.tags)
    weights = {name: getattr(settings.reward, name) for name in PARTS}
    ends = _ends(checkpoint)

    def reward(rows: Sequence[PolicyRow]) -> Reward:
        return Reward(rows, judge, weights, settings.rl.completions, ends)

    def columns_of(index: int) -> dict[str, Any]:
        return {"prompt": prompts.chat(course.train[index]), "row": index}

    limit = 60 * settings.train.time_limit_minutes
    trainer = GspoTrainer(
        model=checkpoint.model,
        args=_arguments(settings, partial, course.steps),
        peft_config=None if settings.model.adapter else _fresh_adapter(settings, checkpoint),
        processing_class=checkpoint.processor,
        reward_funcs=[reward(course.train)],
        schedule=Schedule(
            course.steps, settings.train.warmup, settings.train.evaluations, limit, watch.elapsed
        ),
        watch=watch,
        best=best,
        evaluate_policy=None,
        curriculum=course.curriculum,
        columns_of=columns_of,
        checkpoints=partial / CHECKPOINTS,
        round_steps=settings.round_steps,
        patience=settings.train.patience,
    )
    trained = replace(checkpoint, model=trainer.model)
    trainer.evaluate_policy = _evaluation(
        settings, trained, task, prompts, course.tune, lambda: reward(course.tune), ends
    )
    return trainer, task


def _policy(settings: RlSettings) -> Checkpoint:
    """The base with the adapter to go on from, ready to be trained on."""
    model, on_gpu = settings.model, settings.model.device == "cuda"
    # On a CPU the frozen weights stay in float32 and bfloat16 is what autocast computes in.
    dtype = model.precision if on_gpu else "float32"
    checkpoint = load_checkpoint(model.base, dtype=dtype, device=model.device, adapter=model.adapter or None)
    fast_vision(checkpoint.network)
    if model.adapter:
        checkpoint.model.set_adapter("default")
        checkpoint.model.peft_config["default"].inference_mode = False
        head = checkpoint.network.get_output_embeddings()
        if not hasattr(head, "bias"):
            # Around a head that shares its trained embeddings peft shows the weight alone; TRL asks for both.
            head.bias = None
    return checkpoint


def _fresh_adapter(settings: RlSettings, checkpoint: Checkpoint) -> Any:
    return lora_config(Settings(lora=settings.lora), checkpoint, [])


def _ends(checkpoint: Checkpoint) -> list[int]:
    """The tokens that end an answer, as the trainer takes them: the model's and the tokenizer's."""
    declared = checkpoint.network.generation_config.eos_token_id
    several = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return sorted({checkpoint.tokenizer.eos_token_id, *several})


def _evaluation(
    settings: RlSettings,
    checkpoint: Checkpoint,
    task: Task,
    prompts: Prompts,
    rows: Sequence[PolicyRow],
    reward: Callable[[], Reward],
    ends: Sequence[int],
) -> Evaluate | None:
    if not rows:
        logger.warning(
            "there is no prompt of part tune: there is no early stop, and the last adapter is kept"
        )
        return None
    weights = {name: getattr(settings.reward, name) for name in PARTS}
    samples = _tune_samples(settings)
    batch = settings.train.batch
    classes = classification(checkpoint, task, samples, batch) if samples else dict

    def evaluate() -> dict[str, float]:
        answers = answer_greedily(checkpoint, prompts, rows, max_tokens=settings.rl.max_tokens, ends=ends)
        return {**judged(rows, answers, reward(), weights), **classes()}

    return evaluate


def _tune_samples(settings: RlSettings) -> list[Sample]:
    if not settings.data.tune_maps:
        return []
    samples = held_out(Path(settings.data.dataset))
    labels = [sample.label for sample in samples]
    per_class = math.ceil(settings.data.tune_maps / max(len(set(labels)), 1))
    return [samples[index] for index in at_most(labels, per_class, settings.train.seed)]


def _rounds(settings: RlSettings, rows: int) -> int:
    train, each = settings.train, settings.round_steps
    if train.max_steps:
        return math.ceil(train.max_steps / each)
    return max(1, math.ceil(train.epochs * rows / settings.rl.prompts))


def _check_lengths(settings: RlSettings, prompts: Prompts, course: Course) -> None:
    longest = sorted([*course.train, *course.tune], key=lambda row: len(row.question))[-_LENGTHS_READ:]
    tokens = max(prompts.length(row) for row in longest) + settings.rl.max_tokens
    if tokens > settings.model.max_length:
        raise TaskError(
            f"prompt and answer take up to {tokens} tokens; raise model.max_length, now "
            f"{settings.model.max_length}, or lower rl.max_tokens, now {settings.rl.max_tokens}"
        )


def _arguments(settings: RlSettings, partial: Path, steps: int) -> GRPOConfig:
    rl, train, on_gpu = settings.rl, settings.train, settings.model.device == "cuda"
    micro = settings.answers // train.batch
    arguments = GRPOConfig(
        output_dir=str(partial / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=train.batch,
        gradient_accumulation_steps=micro // rl.updates,
        steps_per_generation=micro,
        num_iterations=rl.passes,
        num_generations=rl.completions,
        max_completion_length=rl.max_tokens,
        temperature=rl.temperature,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=rl.epsilon,
        epsilon_high=rl.epsilon_high,
        beta=rl.beta,
        scale_rewards=rl.scale,
        shuffle_dataset=False,
        disable_dropout=True,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.clip,
        optim="adamw_torch",
        seed=train.seed,
        bf16=settings.model.precision == "bfloat16",
        fp16=False,
        use_cpu=not on_gpu,
        activation_checkpointing=train.gradient_checkpointing == "on",
        logging_steps=settings.round_steps,
        save_steps=train.save_steps,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_completions=False,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )
    # With several GPUs in sight the trainer would refuse to begin; one is used.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
