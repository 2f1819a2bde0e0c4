"""Putting a training together: model, adapter, batches, held-out maps and trainer, as the settings say."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from trl import SFTConfig

from train import processes
from train.adapter import go_on_from, trained_tokens
from train.batches import Batch, Collator, Example, Order
from train.branches import BranchCollator, judged_classes
from train.config import DataSettings, Settings, TrainSettings
from train.dataset import Sample, dataset_task, read_split
from train.kept import Watch
from train.loading import Checkpoint, load_checkpoint
from train.samples import annotated_examples, at_most, held_out, task_examples
from train.schedule import Schedule
from train.scorer import Scores, tree_log_probs
from train.speed import fast_vision, fold_lora
from train.trainer import AdapterTrainer, Evaluate
from train.vqa.doubts import Doubts
from train.vqa.mix import Mix
from train.wording import Wording
from wafervlm.errors import ConfigError
from wafervlm.loading import load_for_words
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

logger = logging.getLogger(__name__)


def assemble(settings: Settings, partial: Path, resume: Path | None) -> tuple[AdapterTrainer, Task]:
    """The trainer of ``settings`` with the dataset's task; it works in ``partial`` and takes up what the
    checkpoint ``resume`` remembers.

    Raises DatasetError, CheckpointError or TaskError.
    """
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    watch, best = Watch.read(resume) if resume else (Watch(), {})
    task = dataset_task(Path(settings.data.dataset))
    if task.multi_label and settings.data.words:
        raise ConfigError(f"data.words is {settings.data.words} and the task is multi-label; set it to 0")
    examples, mix = _examples(settings, task), _mix(settings.data)
    checkpoint = load_checkpoint(settings.model.base, dtype=_weights(settings), device=settings.model.device)
    fast_vision(checkpoint.model)
    if settings.model.device == "cpu" and settings.model.precision == "bfloat16":
        # As in train.speed: plain products beat the fused attention kernel in bf16 on a CPU.
        checkpoint.model.set_attn_implementation("eager")
    turnable = [settings.data.augment != "none" and example.turns for example in examples]
    order = Order([e.label for e in examples], turnable, settings.train.seed, settings.data.balance)
    steps = total_steps(settings.train, len(examples))
    schedule = _schedule(settings.train, steps, watch.elapsed)
    strong = settings.train.seed if settings.data.augment == "strong" else None
    length, wording = settings.model.max_length, _wording(settings, mix)
    if task.multi_label and not settings.data.annotations:
        collator: Collator = BranchCollator(checkpoint, task, examples, order, length, strong)
    else:
        collator = Collator(checkpoint, task, examples, order, length, strong, wording)
    tokens, tune = collator.answer_tokens(), _tune_samples(settings)
    if settings.model.adapter:
        tokens = sorted({*tokens, *trained_tokens(Path(settings.model.adapter))})

    def judged() -> Checkpoint:
        # Weights that are spread over processes are whole only within the model that the trainer wrapped.
        return replace(checkpoint, model=trainer.model) if trainer.is_fsdp_enabled else checkpoint

    trainer = AdapterTrainer(
        model=checkpoint.model,
        args=_arguments(settings, partial, steps),
        peft_config=lora_config(settings, checkpoint, tokens),
        data_collator=collator,
        positions=steps * maps_per_step(settings.train),
        processing_class=checkpoint.tokenizer,
        schedule=schedule,
        watch=watch,
        best=best,
        evaluate_maps=_evaluation(settings, judged, task, tune),
        evaluate_words=_words_batches(settings, checkpoint, task, tune, mix) if wording and tune else None,
        checkpoints=partial / "checkpoints",
        patience=settings.train.patience,
        tensorboard=partial / "tensorboard" if settings.train.tensorboard else None,
    )
    if settings.model.adapter and resume is None:
        go_on_from(trainer.model, Path(settings.model.adapter), tokens)
    if settings.model.device == "cpu" and settings.model.precision == "bfloat16":
        # In float32 a tenth slower: there the arithmetic counts, and the folded form does more of it.
        fold_lora(trainer.model)
    return trainer, task


def _examples(settings: Settings, task: Task) -> list[Example]:
    dataset = Path(settings.data.dataset)
    samples = read_split(dataset, "train")
    chosen = at_most([s.label for s in samples], settings.data.maps_per_class, settings.train.seed)
    if settings.data.annotations:
        return annotated_examples(dataset, samples, chosen)
    return task_examples([samples[index] for index in chosen], task)


def _wording(settings: Settings, mix: Mix) -> Wording | None:
    data, train = settings.data, settings.train
    if not data.words:
        return None
    rows = _rows(Path(data.vqa)) if data.vqa else []
    return Wording(data.words, train.seed, train.batch, mix, rows)


def _mix(data: DataSettings) -> Mix:
    doubts = Doubts(load_for_words(data.doubts, threads=1)) if data.doubts else None
    return Mix(unsaid=data.unsaid, doubts=doubts)


def _rows(vqa: Path) -> list[Example]:
    samples = read_split(vqa, "train")
    return annotated_examples(vqa, samples, range(len(samples)))


def _words_batches(
    settings: Settings, checkpoint: Checkpoint, task: Task, samples: list[Sample], mix: Mix
) -> Callable[[], Iterator[Batch]]:
    """A function that gives batches in which every one of ``samples`` is asked about in words, or for its
    class where there is nothing to ask, the same each time."""
    examples, batch = task_examples(samples, task), settings.train.batch
    order = Order([e.label for e in examples], [False] * len(examples), 0, balance=False)
    wording = Wording(1.0, 0, batch, mix)
    collator = Collator(checkpoint, task, examples, order, settings.model.max_length, wording=wording)
    places = [range(first, min(first + batch, len(examples))) for first in range(0, len(examples), batch)]
    return lambda: (collator([{"position": k} for k in part]) for part in places)


def _tune_samples(settings: Settings) -> list[Sample]:
    samples = held_out(Path(settings.data.dataset))
    labels = [sample.label for sample in samples]
    per_class = math.ceil(settings.data.tune_maps / max(len(set(labels)), 1))
    return [samples[index] for index in at_most(labels, per_class, settings.train.seed)]


def _evaluation(
    settings: Settings, judged: Callable[[], Checkpoint], task: Task, samples: list[Sample]
) -> Evaluate | None:
    if not samples:
        logger.warning("the dataset has no part tune: there is no early stop, and the last adapter is kept")
        return None
    images = [render(sample.wafer, task.render) for sample in samples]
    labels = [sample.label for sample in samples]

    def evaluate() -> dict[str, float]:
        log_probs = _scores(judged(), task, images, settings.train.batch)
        if task.multi_label:
            return judged_classes(task, log_probs, labels)
        return figures(log_probs, np.array([task.labels.index(label) for label in labels]))

    return evaluate


def _scores(checkpoint: Checkpoint, task: Task, images: Sequence[RgbImage], batch: int) -> Scores:
    """Label log-probabilities (N, L) of ``images``, each process of the training scoring its part."""
    world = processes.count()
    if world == 1:
        return tree_log_probs(checkpoint, task, images, batch_size=batch)
    # Each runs the same number of batches, the last image again where it has none: sharded weights are
    # brought together for all processes at once.
    each = math.ceil(len(images) / world)
    taken = [min(processes.rank() * each + i, len(images) - 1) for i in range(each)]
    part = tree_log_probs(checkpoint, task, [images[i] for i in taken], batch_size=batch)
    return np.concatenate(processes.gathered(part))[: len(images)]


def figures(log_probs: NDArray[np.float64], truth: NDArray[np.int64]) -> dict[str, float]:
    """tune_accuracy, tune_recall (mean over the classes that occur) and tune_loss (mean negative
    log-probability of the right label) of label log-probabilities (N, L) against label indices (N,)."""
    right = log_probs.argmax(axis=1) == truth
    return {
        "tune_accuracy": float(right.mean()),
        "tune_recall": float(np.mean([right[truth == label].mean() for label in np.unique(truth)])),
        "tune_loss": float(-log_probs[np.arange(len(truth)), truth].mean()),
    }


def total_steps(train: TrainSettings, examples: int) -> int:
    """Optimizer steps of a training on ``examples`` maps, if the clock does not end it before."""
    return train.max_steps or max(1, math.ceil(train.epochs * examples / maps_per_step(train)))


def maps_per_step(train: TrainSettings) -> int:
    """Maps that one optimizer step learns from, in all processes together."""
    return train.batch * train.accumulate * processes.count()


def _schedule(train: TrainSettings, steps: int, elapsed: float) -> Schedule:
    return Schedule(steps, train.warmup, train.evaluations, 60 * train.time_limit_minutes, elapsed)


def lora_config(settings: Settings, checkpoint: Checkpoint, answer_tokens: list[int]) -> LoraConfig:
    """The adapter of ``settings`` for the family of ``checkpoint``."""
    lora, family = settings.lora, checkpoint.family
    modules = f"({family.text_modules})|({family.vision_modules})" if lora.vision else family.text_modules
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        trainable_token_indices={"embed_tokens": answer_tokens} if lora.tokens else None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _weights(settings: Settings) -> str:
    # On a CPU the frozen weights stay in float32 and bfloat16 is what autocast computes in.
    return settings.model.precision if settings.model.device == "cuda" else "float32"


def _arguments(settings: Settings, partial: Path, steps: int) -> SFTConfig:
    train, on_gpu = settings.train, settings.model.device == "cuda"
    arguments = SFTConfig(
        output_dir=str(partial / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=train.batch,
        gradient_accumulation_steps=train.accumulate,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        max_grad_norm=train.clip,
        optim="adamw_torch",
        seed=train.seed,
        bf16=settings.model.precision == "bfloat16",
        fp16=False,
        use_cpu=not on_gpu,
        activation_checkpointing=train.gradient_checkpointing == "on",
        logging_steps=max(1, steps // 200),
        save_steps=train.save_steps,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        completion_only_loss=True,
        max_length=None,
        packing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
    )
    # With several GPUs in sight the trainer would split each batch over them; a process uses one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    if processes.count() > 1:
        # Every trained tensor takes part in every pass; looking for ones that do not costs a walk each time.
        arguments.ddp_find_unused_parameters = False
    return arguments
