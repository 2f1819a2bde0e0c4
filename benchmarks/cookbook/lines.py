"""The command that makes an artefact again, written from its provenance.

What it was made from is named by where it lies now, or in capitals where it is not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cookbook.artefacts import Artefact
from benchmarks.cookbook.reading import read_json
from benchmarks.cookbook.settings_lines import reinforcing, training
from train.artefact import folder_digest
from train.cleaning.clean import NANO_BASE
from train.dataset import TASK
from train.sources import SYNTHETIC
from train.split_files import SPLITS_FOLDER
from train.vqa.build import TABLE
from train.vqa.causes import CAUSES
from wafervlm import console
from wafervlm.bundle import EMBEDDED, MANIFEST, open_bundle
from wafervlm.task import WAFER_DEFECTS, Task

Words = list[object]
RECIPE = "recipe.json"


class Places:
    """Where what a digest names lies; ``extra`` are labelled maps that were named beside the artefacts."""

    def __init__(self, known: Mapping[str, Path], extra: Sequence[Path] = ()) -> None:
        self._known, self.extra = dict(known), list(extra)
        self.embedded: str | None = None
        if NANO_BASE.is_dir():
            self._known.setdefault(folder_digest(NANO_BASE), NANO_BASE)
        if (EMBEDDED / MANIFEST).is_file():
            self.embedded = open_bundle().digest
        self._splits = {folder_digest(path): path.stem for path in SPLITS_FOLDER.glob("*.json")}

    def add(self, digest: str, path: Path) -> None:
        """Have ``digest`` name ``path``."""
        self._known.setdefault(digest, path)

    def path(self, digest: str | None) -> Path | None:
        """What ``digest`` names, None where it is not at hand."""
        return self._known.get(digest or "")

    def named(self, digest: str | None, name: str) -> str:
        """The path that ``digest`` names, as short as it can be, or ``name`` in capitals."""
        found = self.path(digest)
        return name.upper().replace(" ", "-") if found is None else shown(found)

    def split(self, digest: str) -> str:
        """The name of a committed split, or the file."""
        return self._splits.get(digest) or self.named(digest, "split")


def shown(path: Path) -> str:
    """``path`` as it is typed from the folder that the command runs in."""
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


def command_of(artefact: Artefact, places: Places) -> str | None:
    """The line that makes ``artefact``, None for a stage that no command makes."""
    write = _WRITERS.get(artefact.stage)
    words = write(artefact, places) if write else None
    return None if words is None else console.command(*words)


def _data(made: Artefact, places: Places) -> Words:
    source = made.inputs.get("source")
    words: Words = ["wafervlm", "data", "build", "-d"]
    words += [SYNTHETIC if source == SYNTHETIC else places.named(source, "maps"), "-o", shown(made.path)]
    words += _counts(made.settings) + _task_and_size(made)
    words += _given(made.settings, {"protocol": "corrected", "natural": False})
    return words + _source_options(made, places)


def _counts(settings: Mapping[str, Any]) -> Words:
    flags = {"train": "-t", "tune": "--tune", "test": "-e"}
    return [word for part, flag in flags.items() for word in (flag, settings.get(part) or "all")]


def _task_and_size(made: Artefact) -> Words:
    task = Task.from_file(made.path / TASK)
    size = (task.render.height, task.render.width)
    if made.settings.get("protocol") == "recipe":
        return ["-s", *size]
    plain = {**task.to_dict(), "render": None} == {**WAFER_DEFECTS.to_dict(), "render": None}
    if not plain or task.render.palette != WAFER_DEFECTS.render.palette:
        return ["--task", shown(made.path / TASK)]
    default = (WAFER_DEFECTS.render.height, WAFER_DEFECTS.render.width)
    return [] if size == default else ["-s", *size]


def _source_options(made: Artefact, places: Places) -> Words:
    words: Words = []
    if "split" in made.inputs:
        words += ["--split-file", places.split(made.inputs["split"])]
    return words + _given(made.settings, {"skip_unknown": False}) + _seed(made)


def _seed(made: Artefact) -> Words:
    seed = made.record.get("seed")
    return ["--seed", seed] if seed else []


def _clean(made: Artefact, places: Places) -> Words:
    source = made.inputs.get("source")
    words: Words = ["wafervlm", "data", "clean"]
    words += [SYNTHETIC if source == SYNTHETIC else places.named(source, "maps"), "-o", shown(made.path)]
    words += ["-b", places.named(made.inputs.get("base"), "base")]
    named = {"drop": None, "drop_above": None, "relabel": False, "test_too": False}
    words += _given(made.settings, named)
    if made.settings.get("shown", 48) != 48:
        words += ["--show", made.settings["shown"]]
    if made.settings.get("task") != WAFER_DEFECTS.to_dict() and (made.path / TASK).is_file():
        words += ["--task", shown(made.path / TASK)]
    return words + _source_options(made, places)


def _vqa(made: Artefact, places: Places) -> Words:
    words: Words = ["wafervlm", "data", "vqa", places.named(made.inputs.get("dies.npz"), "dataset")]
    words += ["-o", shown(made.path), *_given(made.settings, {"per_class": 0})]
    if made.inputs.get("causes") not in (None, folder_digest(CAUSES)):
        words += ["--causes", shown(made.path / TABLE)]
    if rewrite := made.settings.get("rewrite"):
        words += ["--rewrite", rewrite["url"], "--model", rewrite["model"]]
    return words + _seed(made)


def _nano_base(made: Artefact, places: Places) -> Words:
    words: Words = ["python", "-m", "train.nano.base"]
    for name in ("pool", "start"):
        if name in made.inputs:
            words += [f"--{name}", places.named(made.inputs[name], name)]
    words += ["-o", shown(made.path)]
    for name in ("sight_steps", "steps", "seed"):
        words += [_flag(name), made.settings[name]] if name in made.settings else []
    return words


def _merge(made: Artefact, places: Places) -> Words:
    words: Words = ["wafervlm", "merge"]
    for flag, name in (("-b", "base"), ("-a", "adapter"), ("-d", "dataset")):
        words += [flag, places.named(made.inputs.get(name), name)]
    return [*words, "-o", shown(made.path), *_given(made.settings, {"dtype": "bfloat16", "maps": 200})]


_GPTQ = {"bits": 4, "group": 128, "damping": 0.01, "act_order": True, "clip": True, "precision": "float32"}
_CALIBRATE = {"maps": 270, "batch": 16, "check_maps": 270, "weigh": "answers", "words": 0, "offload": "none"}


def _calibrate(made: Artefact, places: Places) -> Words:
    words: Words = ["wafervlm", "calibrate", places.named(made.inputs.get("checkpoint"), "checkpoint")]
    words += ["-d", places.named(made.inputs.get("dataset"), "dataset"), "-o", shown(made.path)]
    words += _given(made.settings.get("scheme", {}), _GPTQ) + _given(made.settings, _CALIBRATE)
    return [*words, "--device", made.settings.get("device", "cpu"), *_seed(made)]


def _compare(made: Artefact, places: Places) -> Words:
    words = _calibrate(made, places)
    at = words.index("-o") + 1
    words[at] = "GPTQ"
    words += ["--compare", shown(made.path)]
    if "maps" in made.inputs:
        words += ["--compare-on", places.named(made.inputs["maps"], "maps")]
    part = made.settings.get("part")
    return words + (["--compare-split", part] if part in ("tune", "test") else [])


_EXPORT = {"golden": "synthetic", "accuracy_level": 4, "vision": "float32", "opset": 23, "golden_maps": None}


def _export(made: Artefact, places: Places) -> Words:
    source = places.path(made.inputs.get("checkpoint"))
    words: Words = ["wafervlm", "export", places.named(made.inputs.get("checkpoint"), "checkpoint")]
    if "tune" in made.inputs:
        words += ["-d", places.named(made.inputs["tune"], "dataset")]
    words += ["-o", shown(made.path)]
    own = None if source is None or not (source / TASK).is_file() else Task.from_file(source / TASK)
    if own is None or own.to_dict() != made.settings.get("task"):
        words += ["--task", "TASK.json"]
    words += _given(made.settings, {**_EXPORT, "name": "", "words": False, "wm811k": None})
    if made.settings.get("words"):
        words += _given(made.settings, {"context": 4096})
    return words + _seed(made)


def _benchmark(made: Artefact, places: Places) -> Words:
    settings, given = made.settings, made.inputs
    words: Words = ["wafervlm", "benchmark"]
    if given.get("bundle") != places.embedded or places.path(given.get("bundle")):
        words += ["--bundle", places.named(given.get("bundle"), "bundle")]
    names = {"reference": "--reference", "base": "--base", "maps": "--maps", "natural": "--natural"}
    names["full_precision"] = "--full-precision-bundle"
    for name, flag in names.items():
        if name in given:
            words += [flag, places.named(given[name], name)]
    if settings.get("synthetic"):
        words += ["--maps", SYNTHETIC]
    words += _given(settings, {"split": "test", "natural_split_file": None})
    words += ["-o", shown(made.path), "--margin", f"{100 * settings.get('margin', 0.01):g}"]
    words += _given(settings, {"latency_maps": 200, "generate_maps": 20, "threads": 2, "quick": False})
    words += _given(settings, {"footprint": True})
    return [*words, "--device", settings.get("device", "auto")]


def _assess(made: Artefact, places: Places) -> Words:
    settings = made.settings
    words: Words = ["wafervlm", "benchmark", "--words"]
    for name, digest in made.inputs.items():
        if " " not in name:
            parts = zip(digest.split("+"), ("folder", "adapter"), strict=False)
            found = "+".join(places.named(part, f"{name}-{what}") for part, what in parts)
            words += ["--subject", f"{name}={found}"]
    if "real maps" in made.inputs:
        words += ["--maps", places.named(made.inputs["real maps"], "maps")]
    words += _given(settings, {"split": "test", "per_class": 0, "planted": 330, "questions": 1})
    words += _given(settings, {"system_turn": False, "classify": True, "max_tokens": 256})
    for flag, file in (("--task", TASK), ("--causes", TABLE)):
        words += [flag, shown(made.path / file)] if (made.path / file).is_file() else []
    if judge := settings.get("judge"):
        words += ["--judge", judge["url"], "--model", judge["model"], "--judge-maps", judge["maps"]]
        words += ["--repeats", judge["repeats"], "--trials", judge["trials"]]
    return [*words, "-o", shown(made.path), *_seed(made)]


def _run(made: Artefact, places: Places) -> Words | None:
    """What only a line makes: its settings lie beside the stages."""
    del places
    if not (made.path.parent / RECIPE).is_file():
        return None
    name = read_json(made.path.parent / RECIPE).get("line", {}).get("name", "recipe")
    return ["wafervlm", "run", f"{name}.toml"]


def _train(made: Artefact, places: Places) -> Words:
    named = {
        flag: made.inputs.get(name) for flag, name in (("-b", "base"), ("-a", "adapter"), ("-d", "dataset"))
    }
    words = training(made.settings)
    for flag, digest in named.items():
        if digest is not None:
            words += [flag, places.named(digest, {"-b": "base", "-a": "adapter", "-d": "dataset"}[flag])]
    if "vqa" in made.inputs:
        words += ["--set", f"data.vqa={json.dumps(places.named(made.inputs['vqa'], 'vqa'))}"]
    return [*words, "-o", shown(made.path)]


def _reinforce(made: Artefact, places: Places) -> Words:
    words = reinforcing(made.settings)
    for flag, name in (("-b", "base"), ("-a", "adapter")):
        if name in made.inputs:
            words += [flag, places.named(made.inputs[name], name)]
    return [*words, "-d", places.named(made.inputs.get("rl.json"), "vqa"), "-o", shown(made.path)]


def _given(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Words:
    """The options for those of ``settings`` that are not as by default."""
    words: Words = []
    for name, default in defaults.items():
        value = settings.get(name, default)
        if value == default:
            continue
        switch = isinstance(default, bool) or isinstance(value, bool)
        words += [_flag(name if value else f"no_{name}")] if switch else [_flag(name), value]
    return words


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_WRITERS: dict[str, Callable[[Artefact, Places], Words | None]] = {
    "data": _data,
    "clean": _clean,
    "vqa": _vqa,
    "nano-base": _nano_base,
    "train": _train,
    "rl": _reinforce,
    "merge": _merge,
    "calibrate": _calibrate,
    "compare": _compare,
    "export": _export,
    "zero-shot": _run,
    "predict": _run,
    "benchmark": _benchmark,
    "words": _assess,
}
