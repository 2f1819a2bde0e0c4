"""Supervised fine-tuning of a LoRA adapter on a dataset of wafer maps.

Work in progress lies in ``<output>.partial``; the adapter appears under its name when it is complete. The
same command goes on after an interruption, from the last whole checkpoint, to the same result.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from transformers.utils import logging as transformers_logging
from trl import SFTConfig

from train.artefact import Provenance, folder_digest, is_complete, read_provenance, write_provenance, writing
from train.batches import Collator, Example, Order
from train.checkpoints import last_checkpoint
from train.config import Settings, TrainSettings, flat_dict, to_dict
from train.curves import draw_curves, write_log
from train.dataset import TASK, Sample, dataset_task, read_split
from train.loading import Checkpoint, load_checkpoint
from train.samples import annotated_examples, at_most, held_out, task_examples
from train.schedule import Schedule
from train.scorer import tree_log_probs
from train.speed import fast_vision
from train.trainer import AdapterTrainer, Evaluate, Watch
from wafervlm.errors import ConfigError, ResourceError, SetupError, UsageError
from wafervlm.render import render
from wafervlm.task import Task

logger = logging.getLogger(__name__)

STAGE, SETTINGS, LOG, CURVES = "train", "settings.json", "log.csv", "curves.png"
# What may change between two runs of the same training without changing its result.
_FREE = ("output", "model.base", "data.dataset", "train.threads", "train.tensorboard")


@dataclass(frozen=True)
class Outcome:
    """What a training came to; ``trained_now`` is False where the adapter stood complete already."""

    adapter: Path
    steps: int
    samples: int
    minutes: float
    stopped: str
    best_step: int
    tune_accuracy: float | None
    tune_recall: float | None
    trained_now: bool = True

    def summary(self) -> dict[str, Any]:
        """Plain values for a result line."""
        return {**dataclasses.asdict(self), "adapter": str(self.adapter)}


def fine_tune(settings: Settings) -> Outcome:
    """Train the adapter that ``settings`` describe and write it to ``settings.output``.

    Raises ConfigError, UsageError, DatasetError, CheckpointError or TaskError for what cannot be trained, and
    ResourceError, saying what to lower, where memory or disk run out.
    """
    settings = settled(settings)
    out, provenance = Path(settings.output), _provenance(settings)
    partial = out.with_name(out.name + ".partial")
    if out.exists():
        if not is_complete(out, provenance):
            raise UsageError(f"{out} exists already and was not made so; remove it or choose another output")
        shutil.rmtree(partial, ignore_errors=True)
        return _recorded(out)
    _claim(partial, provenance)
    with _quiet(), explained_memory(settings):
        outcome = _train(settings, partial, provenance)
    shutil.rmtree(partial, ignore_errors=True)
    return outcome


def settled(settings: Settings) -> Settings:
    """``settings`` with every "auto" decided for this machine, and checked as a whole. Raises ConfigError."""
    for key in ("output", "model.base", "data.dataset"):
        if not flat_dict(settings)[key]:
            raise ConfigError(f"{key} is not set; name it in the settings file or on the command line")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("one process trains the adapter; start it without a launcher")
    device = settings.model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SetupError('model.device is "cuda" and torch sees no GPU here; set it to "cpu"')
    on_gpu = device == "cuda"
    precision, recompute = settings.model.precision, settings.train.gradient_checkpointing
    if precision == "auto":
        precision = "bfloat16" if on_gpu else "float32"
    if recompute == "auto":
        recompute = "on" if on_gpu else "off"
    return dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, device=device, precision=precision),
        train=dataclasses.replace(settings.train, gradient_checkpointing=recompute),
    )


def _provenance(settings: Settings) -> Provenance:
    inputs = {}
    for name, folder in (("base", settings.model.base), ("dataset", settings.data.dataset)):
        if not Path(folder).is_dir():
            raise UsageError(f"the {name} folder {folder} does not exist")
        inputs[name] = folder_digest(Path(folder))
    fixed = {key: value for key, value in flat_dict(settings).items() if key not in _FREE}
    return Provenance(STAGE, inputs, fixed, settings.train.seed)


def _claim(partial: Path, provenance: Provenance) -> None:
    """Make ``partial`` the work folder of exactly this training. Raises UsageError where it holds the
    checkpoints of another."""
    claim = json.loads(json.dumps({"inputs": dict(provenance.inputs), "settings": dict(provenance.settings)}))
    path, checkpoints = partial / "claim.json", partial / "checkpoints"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else claim
    if found != claim and last_checkpoint(checkpoints):
        raise UsageError(
            f"{partial} holds an unfinished training that was begun otherwise ({_difference(found, claim)}); remove "
            "the folder to begin anew, or choose another output"
        )
    partial.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".writing")
    beside.write_text(json.dumps(claim, indent=1), encoding="utf-8")
    beside.replace(path)


def _difference(found: dict[str, Any], claim: dict[str, Any]) -> str:
    changed = [name for name, digest in claim["inputs"].items() if found["inputs"].get(name) != digest]
    settings = {**found["settings"], **claim["settings"]}
    changes = [(key, found["settings"].get(key), claim["settings"].get(key)) for key in settings]
    told = [f"{key} was {old!r} and is {new!r}" for key, old, new in changes if old != new]
    return ", ".join([*(f"the {name} changed" for name in changed), *told])


def _train(settings: Settings, partial: Path, provenance: Provenance) -> Outcome:
    resume = last_checkpoint(partial / "checkpoints")
    trainer, task = _build(settings, partial, resume)
    if not trainer.watch.stopped:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    set_peft_model_state_dict(trainer.model, trainer.best)
    outcome = _outcome(Path(settings.output), trainer.watch, settings.train)
    _write(settings, trainer, task, partial, dataclasses.replace(provenance, parity=_figures(outcome)))
    return outcome


def _build(settings: Settings, partial: Path, resume: Path | None) -> tuple[AdapterTrainer, Task]:
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    watch, best = Watch.read(resume) if resume else (Watch(), {})
    dataset = Path(settings.data.dataset)
    task, examples = dataset_task(dataset), _examples(settings)
    checkpoint = load_checkpoint(Path(settings.model.base), dtype=_weights(settings), device=settings.model.device)
    fast_vision(checkpoint.model)
    turnable = [settings.data.augment and example.turns for example in examples]
    order = Order([e.label for e in examples], turnable, settings.train.seed, settings.data.balance)
    steps = total_steps(settings.train, len(examples))
    schedule = _schedule(settings.train, steps, watch.elapsed)
    trainer = AdapterTrainer(
        model=checkpoint.model,
        args=_arguments(settings, partial, steps),
        peft_config=lora_config(settings, checkpoint),
        data_collator=Collator(checkpoint, task, examples, order, settings.model.max_length),
        train_dataset=_positions(settings.train, steps),
        processing_class=checkpoint.tokenizer,
        schedule=schedule,
        watch=watch,
        best=best,
        evaluate_maps=_evaluation(settings, checkpoint, task, _tune_samples(settings)),
        checkpoints=partial / "checkpoints",
        patience=settings.train.patience,
        tensorboard=partial / "tensorboard" if settings.train.tensorboard else None,
    )
    return trainer, task


def _examples(settings: Settings) -> list[Example]:
    dataset = Path(settings.data.dataset)
    if settings.data.annotations:
        examples = annotated_examples(dataset)
    else:
        examples = task_examples(read_split(dataset, "train"), dataset_task(dataset))
    chosen = at_most([e.label for e in examples], settings.data.maps_per_class, settings.train.seed)
    return [examples[index] for index in chosen]


def _tune_samples(settings: Settings) -> list[Sample]:
    samples = held_out(Path(settings.data.dataset))
    labels = [sample.label for sample in samples]
    per_class = math.ceil(settings.data.tune_maps / max(len(set(labels)), 1))
    return [samples[index] for index in at_most(labels, per_class, settings.train.seed)]


def _evaluation(settings: Settings, checkpoint: Checkpoint, task: Task, samples: list[Sample]) -> Evaluate | None:
    if not samples:
        logger.warning("the dataset has no held-out maps (part tune): no early stop, and the last adapter is kept")
        return None
    images = [render(sample.wafer, task.render) for sample in samples]
    truth = np.array([task.labels.index(sample.label) for sample in samples])

    def evaluate() -> dict[str, float]:
        return figures(tree_log_probs(checkpoint, task, images, batch_size=settings.train.batch), truth)

    return evaluate


def figures(log_probs: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> dict[str, float]:
    """tune_accuracy, tune_recall (mean over the classes that occur) and tune_loss (mean negative log-probability
    of the right label) of label log-probabilities (N, L) against label indices (N,)."""
    right = log_probs.argmax(axis=1) == truth
    return {
        "tune_accuracy": float(right.mean()),
        "tune_recall": float(np.mean([right[truth == label].mean() for label in np.unique(truth)])),
        "tune_loss": float(-log_probs[np.arange(len(truth)), truth].mean()),
    }


def total_steps(train: TrainSettings, examples: int) -> int:
    """Optimizer steps of a training on ``examples`` maps, if the clock does not end it before."""
    return train.max_steps or max(1, math.ceil(train.epochs * examples / (train.batch * train.accumulate)))


def _schedule(train: TrainSettings, steps: int, elapsed: float) -> Schedule:
    return Schedule(steps, train.warmup, train.evaluations, 60 * train.time_limit_minutes, elapsed)


def _positions(train: TrainSettings, steps: int) -> Dataset:
    return Dataset.from_dict({"position": range(steps * train.batch * train.accumulate)})


def lora_config(settings: Settings, checkpoint: Checkpoint) -> LoraConfig:
    """The adapter of ``settings`` for the family of ``checkpoint``."""
    lora, family = settings.lora, checkpoint.family
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=f"({family.text_modules})|({family.vision_modules})" if lora.vision else family.text_modules,
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
    # With several GPUs in sight the trainer would split each batch over them; one is used.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _outcome(out: Path, watch: Watch, train: TrainSettings) -> Outcome:
    last = watch.rows[-1] if watch.rows else {}
    steps = int(last.get("step", 0))
    return Outcome(
        adapter=out,
        steps=steps,
        samples=steps * train.batch * train.accumulate,
        minutes=round(watch.elapsed / 60, 2),
        stopped=watch.stopped,
        best_step=int(watch.best.get("step", steps)),
        tune_accuracy=watch.best.get("tune_accuracy"),
        tune_recall=watch.best.get("tune_recall"),
    )


def _figures(outcome: Outcome) -> dict[str, Any]:
    values = dataclasses.asdict(outcome)
    return {key: value for key, value in values.items() if key not in ("adapter", "trained_now")}


def _recorded(out: Path) -> Outcome:
    return Outcome(adapter=out, trained_now=False, **read_provenance(out)["parity"])


def _write(settings: Settings, trainer: AdapterTrainer, task: Task, partial: Path, provenance: Provenance) -> None:
    out = Path(settings.output)
    with writing(out) as folder:
        trainer.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        # peft's card is an empty form; provenance.json says what is known.
        (folder / "README.md").unlink(missing_ok=True)
        (folder / TASK).write_text(json.dumps(task.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / SETTINGS).write_text(json.dumps(to_dict(settings), indent=1) + "\n", encoding="utf-8")
        write_log(folder / LOG, trainer.watch.rows)
        draw_curves(folder / CURVES, trainer.watch.rows, out.name)
        if settings.train.tensorboard and (partial / "tensorboard").is_dir():
            shutil.copytree(partial / "tensorboard", folder / "tensorboard")
        write_provenance(folder, provenance)


@contextmanager
def explained_memory(settings: Settings) -> Iterator[None]:
    """Turn an error of memory into a ResourceError that says what to lower."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and not any(sign in text for sign in ("out of memory", "allocate memory")):
            raise
        train = settings.train
        half = max(1, train.batch // 2)
        steps = [f"train.batch (now {train.batch}) to {half} and raise train.accumulate to {train.accumulate * 2}"]
        if train.batch == 1:
            steps = ["the size of the images that the task renders"]
        if train.gradient_checkpointing == "off":
            steps.append('or set train.gradient_checkpointing to "on"')
        raise ResourceError(
            f"memory ran out on the {settings.model.device}: lower {', '.join(steps)}; then run the same command"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' own progress and advice off the terminal."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers_logging.set_verbosity(before)
            transformers_logging.enable_progress_bar()
