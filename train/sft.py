"""Supervised fine-tuning of a LoRA adapter on a dataset of wafer maps.

Work in progress lies in ``<output>.partial``; the adapter appears under its name when it is complete. The
same command goes on after an interruption, from the last whole checkpoint, to the same result. Under a
launcher every process calls ``fine_tune``: each trains on its part of every step, and the main one writes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import save_file

from train import processes
from train.artefact import (
    Provenance,
    folder_digest,
    is_complete,
    read_provenance,
    write_provenance,
    writing,
)
from train.assembly import assemble, maps_per_step
from train.config import Settings, TrainSettings, flat_dict, to_dict
from train.curves import draw_curves, write_log
from train.dataset import TASK
from train.kept import Watch
from train.loading import ADAPTER_WEIGHTS
from train.placement import decided
from train.trainer import AdapterTrainer
from train.work import alone, claimed, memory_explained, partial_of, quiet
from wafervlm.errors import ConfigError, SetupError, UsageError
from wafervlm.task import Task

logger = logging.getLogger(__name__)

STAGE, SETTINGS, LOG, CURVES = "train", "settings.json", "log.csv", "curves.png"
# What may change between two runs of the same training without changing its result.
_FREE = (
    "output",
    "model.base",
    "model.adapter",
    "data.dataset",
    "data.doubts",
    "data.vqa",
    "train.threads",
    "train.tensorboard",
)


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
    with processes.together(settings.model.device):
        # The digests of the inputs take a while, and the main process may write to the output any moment.
        provenance, found = processes.of_main(lambda: _begin(settings))
        if found is not None:
            return found
        outcome = _work(settings, provenance)
        processes.wait()
    return outcome


def recorded(settings: Settings, count: int = 1) -> Outcome | None:
    """What a training of ``settings`` by ``count`` processes came to where its adapter stands complete, else
    None. Raises UsageError where the output holds something else."""
    settings = settled(settings)
    return _complete(settings, _provenance(settings, count))


def _begin(settings: Settings) -> tuple[Provenance, Outcome | None]:
    provenance = _provenance(settings, processes.count())
    return provenance, _complete(settings, provenance)


def _complete(settings: Settings, provenance: Provenance) -> Outcome | None:
    out = Path(settings.output)
    if not out.exists():
        return None
    if not is_complete(out, provenance):
        raise UsageError(f"{out} exists already and was not made so; remove it or choose another output")
    shutil.rmtree(partial_of(out), ignore_errors=True)
    return _recorded(out)


def _work(settings: Settings, provenance: Provenance) -> Outcome:
    partial = partial_of(Path(settings.output))
    with alone(partial) if processes.is_main() else nullcontext(), quiet(), explained_memory(settings):
        resume = processes.of_main(lambda: claimed(partial, provenance))
        outcome = _train(settings, partial, provenance, resume)
    if processes.is_main():
        shutil.rmtree(partial, ignore_errors=True)
    return outcome


def settled(settings: Settings) -> Settings:
    """``settings`` with every "auto" decided for this machine, and checked as a whole. Raises ConfigError."""
    for key in ("output", "model.base", "data.dataset"):
        if not flat_dict(settings)[key]:
            raise ConfigError(f"{key} is not set; name it in the settings file or on the command line")
    if processes.count() > 1 and settings.train.time_limit_minutes:
        raise ConfigError(
            f"train.time_limit_minutes is {settings.train.time_limit_minutes:g} and {processes.count()} "
            "processes train, whose clocks differ; set it to 0 and say train.max_steps or train.epochs"
        )
    settings = decided(settings)
    if settings.model.device == "cuda" and not torch.cuda.is_available():
        raise SetupError('model.device is "cuda" and torch sees no GPU here; set it to "cpu"')
    return settings


def _provenance(settings: Settings, count: int) -> Provenance:
    inputs = {}
    named = {"base": settings.model.base, "dataset": settings.data.dataset}
    optional = {
        "adapter": settings.model.adapter,
        "doubts": settings.data.doubts,
        "vqa": settings.data.vqa,
    }
    named |= {name: folder for name, folder in optional.items() if folder}
    for name, folder in named.items():
        if not Path(folder).is_dir():
            raise UsageError(f"the {name} folder {folder} does not exist")
        inputs[name] = folder_digest(Path(folder))
    fixed = {key: value for key, value in flat_dict(settings).items() if key not in _FREE}
    if count > 1:
        # train.batch is what one process takes at a time.
        fixed["processes"] = count
    return Provenance(STAGE, inputs, fixed, settings.train.seed)


def _train(settings: Settings, partial: Path, provenance: Provenance, resume: Path | None) -> Outcome:
    trainer, task = assemble(settings, partial, resume)
    if not trainer.watch.stopped:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    outcome = _outcome(Path(settings.output), trainer.watch, settings.train)
    if processes.is_main():
        _write(settings, trainer, task, partial, dataclasses.replace(provenance, parity=_figures(outcome)))
    return outcome


def _outcome(out: Path, watch: Watch, train: TrainSettings) -> Outcome:
    last = watch.rows[-1] if watch.rows else {}
    steps = int(last.get("step", 0))
    return Outcome(
        adapter=out,
        steps=steps,
        samples=steps * maps_per_step(train),
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
        _save_adapter(trainer, folder)
        for name, values in ((TASK, task.to_dict()), (SETTINGS, to_dict(settings))):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        write_log(folder / LOG, trainer.watch.rows)
        draw_curves(folder / CURVES, trainer.watch.rows, out.name)
        if settings.train.tensorboard and (partial / "tensorboard").is_dir():
            shutil.copytree(partial / "tensorboard", folder / "tensorboard")
        write_provenance(folder, provenance)


def _save_adapter(trainer: AdapterTrainer, folder: Path) -> None:
    """Write the best adapter as peft does."""
    model = trainer.model
    if trainer.is_fsdp_enabled:
        # The model's own tensors are pieces, and only the main process is here; the best ones are whole.
        (config,) = (dataclasses.replace(config) for config in model.peft_config.values())
        config.base_model_name_or_path, config.inference_mode = model.get_base_model().name_or_path, True
        config.save_pretrained(str(folder))
        save_file(trainer.best, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        return
    set_peft_model_state_dict(model, trainer.best)
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    # peft's card is an empty form; provenance.json says what is known.
    (folder / "README.md").unlink(missing_ok=True)


@contextmanager
def explained_memory(settings: Settings) -> Iterator[None]:
    """Turn an error of memory into a ResourceError that says what to lower."""
    with memory_explained(lambda: _what_to_lower(settings)):
        yield


def _what_to_lower(settings: Settings) -> str:
    train = settings.train
    lower = "the size of the images that the task renders"
    if train.batch > 1:
        half, twice = train.batch // 2, 2 * train.accumulate
        lower = f"train.batch (now {train.batch}) to {half} and raise train.accumulate to {twice}"
    if train.gradient_checkpointing == "off":
        lower += ', or set train.gradient_checkpointing to "on"'
    return f"memory ran out on the {settings.model.device}: lower {lower}; then run the same command"
