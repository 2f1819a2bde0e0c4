"""A recipe: the settings of a whole line, as TOML. ``wafervlm run`` reads it.

The text under a field is its help. A section that a stage of its own also reads has that stage's settings.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from calibrate.stage import CalibrateSettings
from train.config import DataSettings, LoraSettings, ModelSettings, TrainSettings
from train.loading import CONFIG
from train.merge import MergeSettings
from train.settings_file import leaves, settings_of
from wafervlm import workshop
from wafervlm.errors import CheckpointError, ConfigError, UsageError, WaferVLMError
from wafervlm.manifest import Vision

DATA_VARIABLE = "WAFERVLM_DATA"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class LineSettings:
    """What the line is called, where it writes, and from which base it starts."""

    name: str = ""
    """Name of the line: its stages write <output>/<name>/<stage>."""
    output: str = "runs"
    """Folder that lines write to."""
    base: str = ""
    """Folder of the base checkpoint, in the Hugging Face layout, or its name on the Hugging Face Hub. A name
    is looked up in what `hf download` brought to this machine; nothing is downloaded by itself."""
    accelerate: str = ""
    """accelerate's configuration of the processes that train, one for each GPU; one process without it."""
    gpu_gib: float = 0.0
    """GiB of each GPU that the line is laid out for; --dry-run says whether it fits. 0: this machine's."""
    seed: int = 0
    """Seed of the choice of maps."""
    threads: int = 2
    """Threads that a CPU computes with. A second thread on a busy core makes each slower."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"line.name is {self.name!r}; it must be a plain folder name")
        if not self.base:
            raise ConfigError("line.base is not set; name the folder of the base checkpoint")
        if self.gpu_gib < 0:
            raise ConfigError(f"line.gpu_gib is {self.gpu_gib}; it must be 0 or more")
        if self.threads < 1:
            raise ConfigError(f"line.threads is {self.threads}; it must be 1 or more")


@dataclass(frozen=True)
class SourceSettings:
    """Which wafer maps go into the dataset."""

    source: str = ""
    """LSWMD.pkl, a .npz, a folder of class folders, or synthetic. $WAFERVLM_DATA is filled in."""
    split: str = ""
    """Split file, or the name of a committed one; without it the source is split anew by lots."""
    task: str = ""
    """Task file with your classes and question; the nine of WM-811K where it is not set."""
    protocol: Literal["corrected", "recipe"] = "corrected"
    """corrected: no lot or map in two parts; recipe: as the Cosmos scripts do it, faults included."""
    size: int = 0
    """Image height and width in pixels; 0 takes the task's."""
    train_per_class: int = 100
    """Maps to train on, of each class; 0 takes all."""
    tune_per_class: int = 20
    """Maps of each class for early stopping, gates and temperature; 0 takes all."""
    test_per_class: int = 20
    """Maps to test on, of each class; 0 takes all."""
    synthetic: int = 0
    """Where the source is not there, train on so many drawn maps of each class; 0 makes it an error."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("data.source is not set; name the labelled maps, or synthetic")
        for name in ("size", "train_per_class", "tune_per_class", "test_per_class", "synthetic"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass(frozen=True)
class ExportSettings:
    """The bundle."""

    name: str = ""
    """Name of the bundle; the task's where it is not set."""
    golden: Literal["synthetic", "tune"] = "synthetic"
    """Where golden maps come from; they are passed on with the bundle."""
    accuracy_level: int = 4
    """What 4-bit products compute in on a CPU: 0 float32 (exact), 4 8-bit integers."""
    vision: Vision = "float32"
    """What the vision tower computes in: float32, or int8, which is faster on a CPU and not exact."""


@dataclass(frozen=True)
class JudgeSettings:
    """The benchmark."""

    maps: str = ""
    """Labelled maps to judge on; the dataset's test part where it is not set. $WAFERVLM_DATA is filled in."""
    natural: str = ""
    """Labelled maps in their natural mix, for screening, calibration and agreement."""
    natural_split: str = ""
    """Split file, or the name of a committed one, whose test part is taken of the natural maps."""
    latency_maps: int = 200
    """Calls timed of each contender."""
    generate_maps: int = 20
    """Calls timed of generate, which is slow."""
    margin: float = 1.0
    """Points of accuracy that may be lost and still be called not worse."""
    quick: bool = False
    """Few maps and calls: a look, not a figure to report."""
    footprint: bool = True
    """Measure load time and memory of each contender in a fresh process."""


@dataclass(frozen=True)
class Recipe:
    """All settings of a line."""

    line: LineSettings = field(default_factory=LineSettings)
    data: SourceSettings = field(default_factory=SourceSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    examples: DataSettings = field(default_factory=DataSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    merge: MergeSettings = field(default_factory=MergeSettings)
    calibrate: CalibrateSettings = field(default_factory=CalibrateSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    benchmark: JudgeSettings = field(default_factory=JudgeSettings)

    def __post_init__(self) -> None:
        for key, value in (("model.base", self.model.base), ("examples.dataset", self.examples.dataset)):
            if value:
                raise ConfigError(f"{key} is set; in a recipe line.base and data.source say it")

    @property
    def folder(self) -> Path:
        """Where the stages write."""
        return Path(self.line.output) / self.line.name


def read_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises ConfigError for an unknown key, with the nearest known one, and wrong values."""
    return settings_of(Recipe, path)


def effective(recipe: Recipe) -> dict[str, Any]:
    """The settings as plain nested values, to be printed and stored."""
    return dataclasses.asdict(recipe)


def find_base(text: str) -> Path:
    """The folder of the base checkpoint that ``text`` names: itself, or what was downloaded of that name.

    Raises UsageError, saying how to get it, where there is none; nothing is downloaded here.
    """
    path = expand(text)
    if path.is_dir():
        return path
    if not _HUB_NAME.fullmatch(text):
        raise UsageError(f"line.base {path} is not a folder; name the base checkpoint")
    try:
        return Path(snapshot_download(text, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        raise UsageError(
            f"line.base {text} is neither a folder nor downloaded to this machine, and nothing is downloaded "
            f"unasked; get it with: hf download {text}"
        ) from None


def without_weights(base: Path, text: str) -> list[WaferVLMError]:
    """What to do where the folder ``base``, named ``text`` in the recipe, holds a configuration and no
    weights; nothing where it has some, or is no checkpoint, which reading it says."""
    if not (base / CONFIG).is_file() or any(base.glob("*.safetensors")):
        return []
    by_name = _HUB_NAME.fullmatch(text) and not expand(text).is_dir()
    how = f"get them with: hf download {text}" if by_name else "put its .safetensors files there"
    return [CheckpointError(f"line.base {text} has a configuration and no weights; {how}")]


def chosen(recipe: Recipe) -> dict[str, Any]:
    """Of ``effective``, what the recipe does not leave at its default."""
    usual = {key: default for key, default, _ in leaves(Recipe)}

    def changed(table: dict[str, Any], above: str) -> dict[str, Any]:
        within = {k: changed(v, f"{above}{k}.") if isinstance(v, dict) else v for k, v in table.items()}
        return {key: value for key, value in within.items() if value != usual.get(above + key, {})}

    return changed(effective(recipe), "")


def processes_of(path: Path) -> int:
    """How many processes accelerate's configuration file ``path`` starts. Raises ConfigError."""
    try:
        config = load_config_from_file(str(path))
        count, machines = int(config.num_processes), int(config.num_machines)
    except Exception as error:  # its YAML reader and its checks raise a dozen classes
        raise ConfigError(f"line.accelerate {path} is not a configuration of accelerate: {error}") from None
    if count < 2 or machines != 1:
        raise ConfigError(
            f"line.accelerate {path} starts {count} process(es) on {machines} machine(s); it must be 2 or "
            "more on one"
        )
    return count


def is_sharded(path: Path) -> bool:
    """Whether accelerate's configuration file ``path`` spreads the weights over the GPUs."""
    return str(load_config_from_file(str(path)).distributed_type).endswith("FSDP")


def expand(text: str) -> Path:
    """``text`` as a path with environment variables filled in; $WAFERVLM_DATA is shared/data beside the
    checkout where it is not set. Raises ConfigError for any other variable that is not set."""
    values = {DATA_VARIABLE: str(workshop.ROOT.parent / "shared" / "data"), **os.environ}

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in values:
            raise ConfigError(f"{text!r} names the environment variable {name}, which is not set")
        return values[name]

    return Path(re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text)).expanduser()
