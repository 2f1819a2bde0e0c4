"""What the chosen artefacts hold: figures, scores, texts, and the wafers behind them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import stage, zero_shot
from benchmarks.assessment import stage as assessment
from benchmarks.assessment.cases import planted_cases
from benchmarks.assessment.measuring import PLANTED, REAL
from benchmarks.config import BenchmarkConfig
from benchmarks.cookbook.artefacts import Artefact, Chosen
from benchmarks.cookbook.lines import Places
from benchmarks.cookbook.reading import parsed, read_json
from benchmarks.judging import labelled_sets
from benchmarks.scores import samples_digest
from benchmarks.statistics import Floats
from train.dataset import DIES, SPLIT, TASK, Sample, read_labelled
from train.samples import at_most
from train.sources.npz import load_arrays
from train.split_files import Split, read_split_file
from train.vqa.build import COUNTS
from wafervlm.bundle import open_bundle
from wafervlm.errors import WaferVLMError
from wafervlm.task import WAFER_DEFECTS, Task
from wafervlm.wafermap import WaferMap

MAPS = "maps"
# Keys of the reports that a cookbook is filled from.
_NEEDED = {
    "benchmark": ("maps", "accuracy", "models", "comparison"),
    "words": ("maps", "subjects", "settings", "inputs"),
}


@dataclass
class Material:
    """The artefacts, read. What is not there is None or empty; ``absent`` says why wafers are
    not; with ``predict`` the bundle may be asked now; ``command`` is the report's own."""

    chosen: Chosen
    places: Places
    task: Task = WAFER_DEFECTS
    report: dict[str, Any] | None = None
    scores: dict[str, Floats] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    words: dict[str, Any] | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    wafers: dict[tuple[str, str], WaferMap] = field(default_factory=dict)
    lint: dict[str, Any] | None = None
    absent: str = ""
    predict: bool = False
    command: str = ""

    def one(self, kind: str) -> Artefact | None:
        """The artefact of ``kind`` that is shown, None without."""
        return next(iter(self.chosen[kind]), None)

    def json(self, kind: str, name: str) -> Any:
        """What the file ``name`` of the artefact of ``kind`` holds, None without either."""
        made = self.one(kind)
        if made is None or not (made.path / name).is_file():
            return None
        return read_json(made.path / name, _NEEDED.get(kind, ()))

    def rows(self, kind: str, name: str) -> list[dict[str, str]]:
        """The lines of the CSV file ``name``, empty without."""
        made = self.one(kind)
        return [] if made is None else read_rows(made.path / name)

    def split(self, made: Artefact) -> Split | None:
        """The record of how ``made`` was split."""
        path = made.path / SPLIT
        return read_split_file(path) if path.is_file() else None

    @property
    def zero_shot(self) -> dict[str, Any] | None:
        """Figures of the base before it was taught."""
        found: dict[str, Any] | None = self.json("zero_shot", zero_shot.FIGURES)
        return found

    @property
    def untaught(self) -> str | None:
        """The subject of the assessment of words that is the base itself, None where it was not asked."""
        every = [made for group in self.chosen.values() for made in group]
        bases = {made.inputs["base"] for made in every if "base" in made.inputs}
        bases.update(made.digest for made in self.chosen["base"])
        subjects = self.words["subjects"] if self.words else {}
        return next((name for name, one in subjects.items() if one["digest"] in bases), None)

    @property
    def vqa(self) -> dict[str, Any] | None:
        """Counts of rows."""
        found: dict[str, Any] | None = self.json("vqa", COUNTS)
        return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, empty without."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gather(chosen: Chosen, places: Places, *, lint: Path | None = None, predict: bool = False) -> Material:
    """Read the ``chosen`` artefacts. Raises what reading a broken one raises."""
    found = Material(chosen, places, predict=predict)
    found.report, found.words = found.json("benchmark", stage.REPORT), found.json("words", assessment.REPORT)
    found.task = _task(found)
    if lint is not None:
        found.lint = read_json(lint, ("passed", "failures", "dimensions"))
    if found.report is not None:
        _read_benchmark(found, found.report)
    if found.words is not None:
        _read_words(found, found.words)
    return found


def _task(found: Material) -> Task:
    """The task of the benchmark, else that of the first artefact that has one."""
    wanted = found.report["task"]["digest"] if found.report else None
    tasks = []
    for made in [one for group in found.chosen.values() for one in group]:
        if made.kind == "bundle":
            tasks.append(open_bundle(made.path).manifest.task)
        elif (made.path / TASK).is_file():
            tasks.append(Task.from_file(made.path / TASK))
    if found.report and found.report["bundle"]["embedded"]:
        tasks.append(open_bundle().manifest.task)
    fitting = [task for task in tasks if wanted in (None, task.digest)]
    return (fitting or tasks or [WAFER_DEFECTS])[0]


def _read_benchmark(found: Material, report: dict[str, Any]) -> None:
    made = found.chosen["benchmark"][0]
    if (made.path / stage.SCORES).is_file():
        names = tuple(f"maps_{who}" for who in report["models"])
        found.scores = load_arrays(made.path / stage.SCORES, names)
    path = found.places.path(made.inputs.get(MAPS))
    if path is None:
        found.absent = "The maps that were judged on are not at hand: name them with --maps."
        return
    settings = made.settings
    config = BenchmarkConfig(path, path, split=settings["split"], quick=settings["quick"])
    try:
        samples = labelled_sets(config, found.task)[MAPS]
    except WaferVLMError as error:
        found.absent = f"The maps that were judged on cannot be read: {error}."
        return
    if samples_digest(samples) == report["maps"]["digest"]:
        found.samples = samples
    else:
        found.absent = f"{path} holds other maps than those that were judged on."


def _read_words(found: Material, words: dict[str, Any]) -> None:
    made = found.chosen["words"][0]
    path = made.path / assessment.ANSWERS
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        found.answers = [parsed(line, path) for line in lines]
    settings, inputs = words["settings"], words["inputs"]
    if PLANTED in words["maps"]:
        cases = planted_cases(settings["planted"], settings["seed"])
        if samples_digest(cases.samples) == inputs[f"{PLANTED} maps"]:
            found.wafers |= {(PLANTED, case.wafer.id): case.wafer for case in cases.cases}
    for folder in _sources(found):
        if f"{REAL} maps" not in inputs or found.places.path(inputs[f"{REAL} maps"]):
            return
        samples = _asked_about(folder, settings)
        if samples and samples_digest(samples) == inputs[f"{REAL} maps"]:
            found.places.add(inputs[f"{REAL} maps"], folder)
            found.wafers |= {(REAL, sample.wafer.id): sample.wafer for sample in samples}


def _sources(found: Material) -> list[Path]:
    """Where labelled maps may lie that were asked about."""
    made = [one.path for kind in ("vqa", "dataset", "cleaned") for one in found.chosen[kind]]
    return [*made, *found.places.extra]


def _asked_about(path: Path, settings: dict[str, Any]) -> Sequence[Sample]:
    """The maps of ``path`` that an assessment with ``settings`` asks about; none where it cannot be read."""
    try:
        samples = read_labelled(path, settings["split"] if (path / DIES).is_file() else None)
    except WaferVLMError:
        return []
    return [samples[i] for i in at_most([s.label for s in samples], settings["per_class"], settings["seed"])]
