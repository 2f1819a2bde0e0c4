"""Supervised fine-tuning of a LoRA adapter on a dataset of wafer maps.

Work in progress lies in ``<output>.partial``; the adapter appears under its name when it is complete. The
same command goes on after an interruption, from the last whole checkpoint, to the same result.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from transformers.utils import logging as transformers_logging

from train.artefact import (
    Provenance,
    claim,
    folder_digest,
    is_complete,
    read_provenance,
    write_provenance,
    writing,
)
from train.assembly import assemble
from train.checkpoints import last_checkpoint
from train.config import Settings, TrainSettings, flat_dict, to_dict
from train.curves import draw_curves, write_log
from train.dataset import TASK
from train.trainer import AdapterTrainer, Watch
from wafervlm.errors import ConfigError, ResourceError, SetupError, UsageError
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
    with _alone(partial), _quiet(), explained_memory(settings):
        claim(partial, provenance, begun=last_checkpoint(partial / "checkpoints") is not None)
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


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Keep other processes out of ``partial``. Raises UsageError where one is at work there."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as file:
        try:
            # The system drops this lock when the process dies, however it dies.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is training in {partial}; wait for it, or stop it") from None
        yield


def _train(settings: Settings, partial: Path, provenance: Provenance) -> Outcome:
    resume = last_checkpoint(partial / "checkpoints")
    trainer, task = assemble(settings, partial, resume)
    if not trainer.watch.stopped:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    set_peft_model_state_dict(trainer.model, trainer.best)
    outcome = _outcome(Path(settings.output), trainer.watch, settings.train)
    _write(settings, trainer, task, partial, dataclasses.replace(provenance, parity=_figures(outcome)))
    return outcome


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


def _write(
    settings: Settings, trainer: AdapterTrainer, task: Task, partial: Path, provenance: Provenance
) -> None:
    out = Path(settings.output)
    with writing(out) as folder:
        trainer.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        # peft's card is an empty form; provenance.json says what is known.
        (folder / "README.md").unlink(missing_ok=True)
        for name, values in ((TASK, task.to_dict()), (SETTINGS, to_dict(settings))):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
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
        signs = ("out of memory", "allocate memory")
        if isinstance(error, RuntimeError) and not any(sign in str(error).lower() for sign in signs):
            raise
        raise ResourceError(_what_to_lower(settings)) from error


def _what_to_lower(settings: Settings) -> str:
    train = settings.train
    lower = "the size of the images that the task renders"
    if train.batch > 1:
        half, twice = train.batch // 2, 2 * train.accumulate
        lower = f"train.batch (now {train.batch}) to {half} and raise train.accumulate to {twice}"
    if train.gradient_checkpointing == "off":
        lower += ', or set train.gradient_checkpointing to "on"'
    return f"memory ran out on the {settings.model.device}: lower {lower}; then run the same command"


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
