"""Curriculum GSPO from an SFT adapter, as a stage: settings in, a whole adapter folder out.

Work in progress lies in ``<output>.partial``. The same command goes on after an interruption, from the last
whole checkpoint, to the same result.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict

from train import processes
from train.artefact import (
    Provenance,
    folder_digest,
    is_complete,
    read_provenance,
    write_provenance,
    writing,
)
from train.dataset import DIES, TASK
from train.placement import decided
from train.rl.assembly import assemble
from train.rl.log import draw_curves, mean_of, write_log
from train.rl.reward import Judge
from train.rl.settings import RlSettings, flat_settings
from train.rl.trainer import GspoTrainer, RlWatch
from train.sft import CURVES, LOG, SETTINGS
from train.vqa.build import DESCRIPTIONS, RL
from train.work import alone, claimed, memory_explained, partial_of, quiet
from wafervlm.errors import ConfigError, SetupError, UsageError
from wafervlm.task import Task

STAGE = "rl"
# What may change between two runs of the same training without changing its result.
_FREE = ("output", "model.base", "model.adapter", "data.dataset", "train.threads")


@dataclass(frozen=True)
class Outcome:
    """What a training came to. Held-out figures are of ``best_step``, those of ``start_`` before the first
    step; where no later one is better the adapter is the one it went on from and ``best_step`` is 0.
    ``zero_variance`` and ``clip_ratio`` are means over the training."""

    adapter: Path
    steps: int
    prompts: int
    minutes: float
    stopped: str
    best_step: int
    start_reward: float | None
    tune_reward: float | None
    start_accuracy: float | None
    tune_accuracy: float | None
    zero_variance: float | None
    clip_ratio: float | None
    trained_now: bool = True

    def summary(self) -> dict[str, Any]:
        """Plain values for a result line."""
        return {**dataclasses.asdict(self), "adapter": str(self.adapter)}


def reinforce(settings: RlSettings, judge: Judge | None = None) -> Outcome:
    """Train the adapter that ``settings`` describe and write it to ``settings.output``; ``judge`` judges
    answers in place of the rubrics and the dies.

    Raises ConfigError, UsageError, DatasetError, CheckpointError or TaskError for what cannot be trained, and
    ResourceError, saying what to lower, where memory or disk run out.
    """
    settings = settled(settings)
    provenance, out = _provenance(settings), Path(settings.output)
    partial = partial_of(out)
    if out.exists():
        if not is_complete(out, provenance):
            raise UsageError(f"{out} exists already and was not made so; remove it or choose another output")
        shutil.rmtree(partial, ignore_errors=True)
        return Outcome(adapter=out, trained_now=False, **read_provenance(out)["parity"])
    with alone(partial), quiet(), explained_memory(settings):
        resume = claimed(partial, provenance)
        trainer, task = assemble(settings, partial, resume, judge)
        if not trainer.watch.stopped:
            with _explained_divergence(settings, trainer):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        outcome = _outcome(out, trainer.watch)
        _write(settings, trainer, task, dataclasses.replace(provenance, parity=_figures(outcome)))
    shutil.rmtree(partial, ignore_errors=True)
    return outcome


def settled(settings: RlSettings) -> RlSettings:
    """``settings`` with every "auto" decided for this machine, and checked as a whole. Raises ConfigError."""
    for key in ("output", "model.base", "data.dataset"):
        if not flat_settings(settings)[key]:
            raise ConfigError(f"{key} is not set; name it in the settings file or on the command line")
    if processes.count() > 1:
        raise ConfigError(
            f"{processes.count()} processes were started and reinforcement learning runs in one; start it "
            "without accelerate launch"
        )
    settings = decided(settings)
    if settings.model.device == "cuda" and not torch.cuda.is_available():
        raise SetupError('model.device is "cuda" and torch sees no GPU here; set it to "cpu"')
    return settings


@contextmanager
def explained_memory(settings: RlSettings) -> Iterator[None]:
    """Turn an error of memory into a ResourceError that says what to lower."""
    with memory_explained(lambda: _what_to_lower(settings)):
        yield


@contextmanager
def _explained_divergence(settings: RlSettings, trainer: Any) -> Iterator[None]:
    """Turn what torch says of probabilities that are none into a ConfigError that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise ConfigError(
            f"training diverged at step {trainer.state.global_step}: the model gives no probabilities any "
            f"more; lower train.learning_rate (now {settings.train.learning_rate:g}) and choose another "
            "output"
        ) from None


def _what_to_lower(settings: RlSettings) -> str:
    train, rl = settings.train, settings.rl
    lower = f"train.batch (now {train.batch})" if train.batch > 1 else "the size of the images"
    lower += f", or rl.prompts (now {rl.prompts}), whose answers are drawn all at once"
    if train.gradient_checkpointing == "off":
        lower += ', or set train.gradient_checkpointing to "on"'
    return f"memory ran out on the {settings.model.device}: lower {lower}; then run the same command"


def _provenance(settings: RlSettings) -> Provenance:
    inputs = {}
    for name in ("base", "adapter"):
        folder = getattr(settings.model, name)
        if not folder:
            continue
        if not Path(folder).is_dir():
            raise UsageError(f"the {name} folder {folder} does not exist")
        inputs[name] = folder_digest(Path(folder))
    dataset = Path(settings.data.dataset)
    if not (dataset / RL).is_file():
        raise UsageError(f"{dataset} has no {RL}; make it with wafervlm data vqa")
    # The images are drawn from the dies, and are many.
    read = (RL, DIES, TASK, *([DESCRIPTIONS] if settings.data.descriptions else []))
    inputs |= {name: folder_digest(dataset / name) for name in read}
    fixed = {key: value for key, value in flat_settings(settings).items() if key not in _FREE}
    return Provenance(STAGE, inputs, fixed, settings.train.seed)


def _outcome(out: Path, watch: RlWatch) -> Outcome:
    last = watch.rows[-1] if watch.rows else {}
    start = next((row for row in watch.rows if row["step"] == 0), {})
    return Outcome(
        adapter=out,
        steps=int(last.get("step", 0)),
        prompts=int(last.get("prompts", 0)),
        minutes=round(watch.elapsed / 60, 2),
        stopped=watch.stopped,
        best_step=int(watch.best.get("step", last.get("step", 0))),
        start_reward=start.get("tune_reward"),
        tune_reward=watch.best.get("tune_reward"),
        start_accuracy=start.get("tune_accuracy"),
        tune_accuracy=watch.best.get("tune_accuracy"),
        zero_variance=mean_of(watch.rows, "zero_variance"),
        clip_ratio=mean_of(watch.rows, "clip_ratio"),
    )


def _figures(outcome: Outcome) -> dict[str, Any]:
    values = dataclasses.asdict(outcome)
    return {key: value for key, value in values.items() if key not in ("adapter", "trained_now")}


def _write(settings: RlSettings, trainer: GspoTrainer, task: Task, provenance: Provenance) -> None:
    out, model = Path(settings.output), trainer.model
    with writing(out) as folder:
        set_peft_model_state_dict(model, trainer.best)
        model.save_pretrained(
            folder, safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
        )
        # peft's card is an empty form; provenance.json says what is known.
        (folder / "README.md").unlink(missing_ok=True)
        for name, values in ((TASK, task.to_dict()), (SETTINGS, dataclasses.asdict(settings))):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        write_log(folder / LOG, trainer.watch.rows)
        draw_curves(folder / CURVES, trainer.watch.rows, out.name)
        write_provenance(folder, provenance)
