"""The stages of a recipe, each bound to its settings and to the outputs before it.

A stage's module is imported when the stage is done: saying what it would do takes none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipe import Recipe, expand, find_base, processes_of, without_weights
from train.artefact import PROVENANCE
from train.build import BuildConfig, build_dataset
from train.config import Settings
from train.dataset import Sample, dataset_task
from wafervlm import console
from wafervlm.errors import DatasetError, SetupError, UsageError, WaferVLMError
from wafervlm.task import WAFER_DEFECTS, Task

STAGES = ("data", "zero-shot", "train", "merge", "calibrate", "export", "predict", "benchmark")


@dataclass(frozen=True)
class Stage:
    """A stage of the line: where it writes, what it does in words, and doing it, which gives its figures."""

    name: str
    out: Path
    does: str
    do: Callable[[], dict[str, Any]]

    @property
    def state(self) -> str:
        """ "there", "begun" or "to do", judged by what lies on the disk."""
        if (self.out / PROVENANCE).is_file():
            return "there"
        return "begun" if self.out.with_name(self.out.name + ".partial").exists() else "to do"


class Line:
    """The stages of a recipe, each bound to its settings and to the outputs before it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.missing: list[WaferVLMError] = []
        self.processes = processes_of(Path(recipe.line.accelerate)) if recipe.line.accelerate else 1
        self.base: Path | None = None
        try:
            self.base = find_base(recipe.line.base)
            self.missing += without_weights(self.base, recipe.line.base)
        except UsageError as error:
            self.missing.append(error)
        source = expand(recipe.data.source)
        self.synthetic = str(source) == "synthetic" or not source.exists()
        if self.synthetic and str(source) != "synthetic":
            self._without(source)
        self.missing += self._without_gpus()

    def ready(self) -> Line:
        """This line, where everything that it needs is here; else raises the first of ``missing``."""
        for error in self.missing:
            raise error
        return self

    def training(self) -> Settings:
        """The settings of the train stage."""
        recipe = self.recipe
        threads = recipe.train.threads or recipe.line.threads
        return Settings(
            output=str(self.out("train")),
            model=replace(recipe.model, base=str(self.base or recipe.line.base)),
            data=replace(recipe.examples, dataset=str(self.out("data"))),
            lora=recipe.lora,
            train=replace(recipe.train, threads=threads),
        )

    def dataset(self) -> BuildConfig:
        """The settings of the data stage."""
        data, task = self.recipe.data, WAFER_DEFECTS
        if data.task:
            task = Task.from_file(expand(data.task))
        return BuildConfig(
            source=Path("synthetic") if self.synthetic else expand(data.source),
            train=(data.synthetic if self.synthetic else 0) or data.train_per_class or None,
            tune=data.tune_per_class or None,
            test=data.test_per_class or None,
            size=(data.size, data.size) if data.size else None,
            protocol=data.protocol,
            task=task,
            split=None if self.synthetic else data.split or None,
            seed=self.recipe.line.seed,
        )

    def _without_gpus(self) -> list[WaferVLMError]:
        wanted = self.processes if self.processes > 1 else int(self.recipe.model.device == "cuda")
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if here >= wanted:
            return []
        return [SetupError(f"the recipe trains on {wanted} GPU(s) and torch sees {here} here")]

    def _without(self, source: Path) -> None:
        count = self.recipe.data.synthetic
        if not count:
            self.missing.append(
                DatasetError(
                    f"data.source {source} does not exist; set WAFERVLM_DATA to the folder that holds it, or "
                    "data.synthetic to go on with drawn maps"
                )
            )
            return
        console.say(
            f"NOTE: there are no real wafer maps at {source}. The line goes on with {count} SYNTHETIC maps "
            "of each class: its figures say nothing about real wafers. Set WAFERVLM_DATA to the folder that "
            "has them."
        )

    def out(self, stage: str) -> Path:
        """The folder that ``stage`` writes."""
        return self.recipe.folder / stage

    def stages(self) -> list[Stage]:
        """All stages in order."""
        does = {
            "data": (
                f"a dataset from {'synthetic maps' if self.synthetic else self.recipe.data.source}",
                self._data,
            ),
            "zero-shot": ("what the base answers before it is taught", self._zero_shot),
            "train": (self._way(), self._train),
            "merge": ("the adapter into the base", self._merge),
            "calibrate": (self._scheme(), self._calibrate),
            "export": ("the static graph and its bundle", self._export),
            "predict": ("answers for the test maps", self._predict),
            "benchmark": ("the bundle against full precision", self._benchmark),
        }
        return [Stage(name, self.out(name), *does[name]) for name in STAGES]

    def _way(self) -> str:
        return "LoRA on the train maps" + (f", in {self.processes} processes" if self.processes > 1 else "")

    def _scheme(self) -> str:
        scheme = self.recipe.calibrate.scheme
        return f"GPTQ to {scheme.bits} bits in groups of {scheme.group} on wafer maps"

    def _data(self) -> dict[str, Any]:
        counts, _ = build_dataset(self.dataset(), self.out("data"))
        return {part: sum(classes.values()) for part, classes in counts.items()}

    def _zero_shot(self) -> dict[str, Any]:
        from benchmarks.zero_shot import zero_shot

        found = zero_shot(self._base(), self._task(), self._maps(), self.out("zero-shot"), self._device())
        return {"accuracy": found["accuracy"]["value"], "in_set_mass": found["in_set_mass"]}

    def _train(self) -> dict[str, Any]:
        from benchmarks.launch import launch
        from train.sft import fine_tune

        if self.processes > 1:
            found = launch(self.training(), Path(self.recipe.line.accelerate), self.processes).summary()
        else:
            found = fine_tune(self.training()).summary()
        return {key: found[key] for key in ("steps", "minutes", "tune_accuracy", "stopped")}

    def _merge(self) -> dict[str, Any]:
        from train.merge import merge

        return merge(self._base(), self.out("train"), self.out("data"), self.out("merge"), self.recipe.merge)

    def _calibrate(self) -> dict[str, Any]:
        from calibrate.stage import calibrate

        return calibrate(self.out("merge"), self.out("data"), self.out("calibrate"), self.recipe.calibrate)

    def _export(self) -> dict[str, Any]:
        from export.stage import ExportConfig, export

        settings = self.recipe.export
        config = ExportConfig(
            checkpoint=self.out("calibrate"),
            task=self._task(),
            tune=self.out("data"),
            golden=settings.golden,
            accuracy_level=settings.accuracy_level,
            vision=settings.vision,
            name=settings.name,
        )
        manifest, _ = export(config, self.out("export"))
        size = sum(entry.size for entry in manifest.files)
        return {"bytes": size, "temperature": manifest.temperature, **manifest.parity}

    def _predict(self) -> dict[str, Any]:
        from benchmarks.predictions import predict_maps
        from benchmarks.scores import load_maps

        samples = load_maps(self.out("data"), self._task())
        return predict_maps(self.out("export"), samples, self.out("predict"), self.recipe.line.threads)

    def _benchmark(self) -> dict[str, Any]:
        from benchmarks.config import BenchmarkConfig
        from benchmarks.stage import benchmark, summary

        settings, natural = self.recipe.benchmark, self._real(self.recipe.benchmark.natural)
        config = BenchmarkConfig(
            reference=self.out("merge"),
            maps=self._real(settings.maps) or self.out("data"),
            bundle=self.out("export"),
            base=self.out("zero-shot"),
            natural=natural,
            natural_split_file=(settings.natural_split or None) if natural else None,
            threads=self.recipe.line.threads,
            latency_maps=settings.latency_maps,
            generate_maps=settings.generate_maps,
            margin=settings.margin / 100,
            quick=settings.quick,
            footprint=settings.footprint,
            device=self._device(),
        )
        report, _ = benchmark(config, self.out("benchmark"))
        return summary(report)

    def _base(self) -> Path:
        return self.base or find_base(self.recipe.line.base)

    def _maps(self) -> list[Sample]:
        from benchmarks.scores import load_maps

        return load_maps(self._real(self.recipe.benchmark.maps) or self.out("data"), self._task())

    def _real(self, text: str) -> Path | None:
        """The path of real maps to judge on; None where none are named, or the line is on synthetic ones."""
        return expand(text) if text and not self.synthetic else None

    def _task(self) -> Task:
        return dataset_task(self.out("data"))

    def _device(self) -> str:
        return "cuda" if self.recipe.model.device != "cpu" and torch.cuda.is_available() else "cpu"
