"""The whole line, from wafer maps and a base checkpoint to a bundle and its report.

Every stage writes a folder of its own below <output>/<name>. A stage that finds its output complete and made
from the same inputs and settings leaves it as it is, so that the line goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.judging import check_single
from benchmarks.line_stages import STAGES, Line, Stage
from benchmarks.memory import GIB, Size, size_of, size_of_known, training_memory
from benchmarks.predictions import EXAMPLE
from benchmarks.recipe import Recipe, effective, is_sharded
from benchmarks.stage import HTML, REPORT
from train.artefact import PROVENANCE
from train.placement import decided
from wafervlm import console
from wafervlm.errors import ConfigError, UsageError

SETTINGS = "recipe.json"


@dataclass(frozen=True)
class Outcome:
    """What a line came to: its ``summary``, the ``report`` as values and as the page to open, and what the
    next command needs."""

    summary: dict[str, Any]
    report: dict[str, Any]
    page: Path
    bundle: Path
    example: Path


def drive(recipe: Recipe, *, redo: str | None = None) -> Outcome:
    """Run every stage of ``recipe`` that is not complete; ``redo`` names the first stage to make anew.

    Raises what the stages raise, and UsageError, saying what to do, where an output was made otherwise.
    """
    line = Line(recipe).ready()
    check_single(line.dataset().task)
    stages = line.stages()
    _forget(stages, redo)
    _prepare(recipe)
    torch.set_num_threads(recipe.line.threads)
    figures: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for number, stage in enumerate(stages, 1):
        console.say(f"[{number}/{len(stages)}] {stage.name}: {stage.does}")
        begun = time.monotonic()
        figures[stage.name] = _run(stage)
        seconds[stage.name] = round(time.monotonic() - begun, 1)
    console.say(f"the line took {_clock(sum(seconds.values()))}")
    out, page = line.out("benchmark"), line.out("benchmark") / HTML
    found = {"line": recipe.line.name, "synthetic": line.synthetic, "report": str(page), "seconds": seconds}
    report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    example = line.out("predict") / EXAMPLE
    return Outcome({**found, **figures["benchmark"]}, report, page, line.out("export"), example)


@dataclass(frozen=True)
class Plan:
    """What ``drive`` would do: ``stages``, each with what it does, where and its state; ``missing``, what
    this machine lacks for it; ``memory``, bytes by what they are for, of each of ``devices`` devices that
    train, empty where neither the base is here nor its sizes are known, and ``published`` where it is from
    published sizes alone; ``loading``, what each holds before FSDP has cut the weights, 0 without it;
    ``budget``, the bytes of such a device, 0 where not known."""

    stages: list[dict[str, str]]
    missing: list[str]
    memory: dict[str, int]
    published: bool
    loading: int
    devices: int
    budget: int

    @property
    def fits(self) -> bool:
        """Whether training does not take more than a device is known to have."""
        return not self.budget or max(sum(self.memory.values()), self.loading) <= self.budget

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan(recipe: Recipe, redo: str | None = None) -> Plan:
    """What ``drive`` would do, stage by stage, and what training takes, without doing it."""
    line = Line(recipe)
    stages, settings = line.stages(), decided(line.training())
    anew = _from(stages, redo)
    sharded = line.processes if line.processes > 1 and is_sharded(Path(recipe.line.accelerate)) else 1
    task = line.dataset().settled_task()
    if line.base is not None:
        size: Size | None = size_of(line.base, task, recipe.lora)
    else:
        size = size_of_known(recipe.line.base, task, recipe.lora)
    memory = training_memory(size, settings, sharded=sharded) if size else {}
    return Plan(
        stages=[
            {
                "stage": stage.name,
                "does": stage.does,
                "out": str(stage.out),
                "state": "to do" if stage in anew else stage.state,
            }
            for stage in stages
        ],
        missing=[str(error) for error in line.missing],
        memory=memory,
        published=line.base is None,
        loading=memory["weights"] * sharded + memory["overhead"] if memory and sharded > 1 else 0,
        devices=line.processes,
        budget=_budget(recipe, settings.model.device),
    )


def _budget(recipe: Recipe, device: str) -> int:
    if device == "cpu":
        return int(psutil.virtual_memory().total)
    if recipe.line.gpu_gib or not torch.cuda.is_available():
        return int(recipe.line.gpu_gib * GIB)
    return int(torch.cuda.get_device_properties(0).total_memory)


def _run(stage: Stage) -> dict[str, Any]:
    stamp, stood, begun = _stamp(stage.out), stage.out.exists(), time.monotonic()
    try:
        figures = stage.do()
    except UsageError as error:
        if not stood or isinstance(error, ConfigError):
            raise
        raise UsageError(
            f"stage {stage.name}: {error}. To make it and what follows anew, run the same recipe with "
            f"--redo {stage.name}"
        ) from error
    shown = ", ".join(f"{key} {_shown(value)}" for key, value in figures.items() if _is_plain(value))
    state = "complete already" if stamp is not None and stamp == _stamp(stage.out) else "done"
    console.say(f"    {state} in {_clock(time.monotonic() - begun)}" + (f": {shown}" if shown else ""))
    return figures


def _prepare(recipe: Recipe) -> None:
    """Clear away what a killed run left half-written, and store the settings in effect."""
    folder = recipe.folder
    folder.mkdir(parents=True, exist_ok=True)
    for left in [*folder.glob(".*.writing"), *folder.glob(".*.replaced")]:
        process = left.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    (folder / SETTINGS).write_text(json.dumps(effective(recipe), indent=1) + "\n", encoding="utf-8")


def _stamp(out: Path) -> int | None:
    path = out / PROVENANCE
    return path.stat().st_mtime_ns if path.is_file() else None


def _forget(stages: list[Stage], redo: str | None) -> None:
    for stage in _from(stages, redo):
        for folder in (stage.out, stage.out.with_name(stage.out.name + ".partial")):
            shutil.rmtree(folder, ignore_errors=True)


def _from(stages: list[Stage], redo: str | None) -> list[Stage]:
    if redo is None:
        return []
    if redo not in STAGES:
        raise UsageError(f"there is no stage {redo!r}; the stages are {', '.join(STAGES)}")
    return stages[STAGES.index(redo) :]


def _is_plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) and value != ""


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
