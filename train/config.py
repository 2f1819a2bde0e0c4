"""Settings of a fine-tuning: a TOML file read into frozen dataclasses.

The text under a field is its help. A key that is not known is refused with the nearest known one. The
keys of the Cosmos recipe's own ``sft.toml`` are understood too (``train.cosmos_toml``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.cosmos_toml import RECIPE_KEYS, translate
from train.settings_file import build, flatten, leaves, nearest, parse_override, read_table, require
from wafervlm.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Augment = Literal["none", "symmetries", "strong"]


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained, and in what numbers."""

    base: str = ""
    """Folder of the base checkpoint, in the Hugging Face layout."""
    adapter: str = ""
    """Folder of an adapter on that base to go on from, of the same rank on the same modules."""
    device: Device = "auto"
    """Where to train: cpu, cuda, or auto (cuda where there is one)."""
    precision: Precision = "auto"
    """float32, bfloat16, or auto: bfloat16 on a GPU, float32 on a CPU."""
    max_length: int = 4096
    """Longest conversation in tokens, image included; a longer one is refused, never cut."""

    def __post_init__(self) -> None:
        require(self.max_length >= 16, "model.max_length", self.max_length, "16 or more")


@dataclass(frozen=True)
class DataSettings:
    """Which wafer maps are shown, and how."""

    dataset: str = ""
    """Dataset folder that `wafervlm data build` wrote."""
    annotations: bool = False
    """Train on every conversation of annotations/train.json instead of the task's question alone."""
    augment: Augment = "symmetries"
    """symmetries: show each map in its 8 rotations and mirrors, save where question or answer name a
    direction; strong: turn it by any angle, on a slightly other die grid, with some dies flipped, too, which
    keeps a class but not a count; none: show it as it is."""
    balance: bool = True
    """Draw all classes equally often; false draws maps as often as they are there."""
    words: float = 0.0
    """Share of the batches that ask for words, not for the class: descriptions and questions as in
    `wafervlm data vqa`, answered by what is measured on the dies as they are shown. Where label and dies
    disagree whether the pattern has a place, the class is asked."""
    unsaid: float = 0.0
    """Chance that a description leaves out a statement other than share, zone and clock position: so trained,
    the model says only what it holds to be right with more than 0.5 / (1 - unsaid)."""
    doubts: str = ""
    """Bundle exported from model.adapter: of each map as it is shown, descriptions leave out what this bundle
    says wrongly of it, so that the model learns to say what it will get right. It describes every map that is
    described, on one thread of the CPU: half the time of nano's training, and too long for a 4B."""
    vqa: str = ""
    """Folder that `wafervlm data vqa` wrote: take the words from its rows instead, each map as it is."""
    maps_per_class: int = 0
    """Train on at most so many maps of each class, chosen by the seed; 0 takes all."""
    tune_maps: int = 540
    """At most so many held-out maps are scored at each evaluation, as many of each class; 0 takes all."""

    def __post_init__(self) -> None:
        require(
            not (self.annotations and self.augment == "strong"),
            "data.augment",
            self.augment,
            "none or symmetries where data.annotations is true: strong changes what answers may count",
        )
        require(0 <= self.words < 1, "data.words", self.words, "0 or more and below 1")
        require(
            not self.vqa or self.words > 0, "data.words", self.words, "above 0 where data.vqa names a folder"
        )
        require(0 <= self.unsaid < 0.5, "data.unsaid", self.unsaid, "0 or more and below 0.5")
        wanted = "left out where data.vqa names a folder: its rows are taken as they are"
        for name, value in (("unsaid", self.unsaid), ("doubts", self.doubts)):
            require(not value or self.words > 0, "data.words", self.words, f"above 0 where data.{name} is")
            require(not (self.vqa and value), f"data.{name}", value, wanted)
        require(self.maps_per_class >= 0, "data.maps_per_class", self.maps_per_class, "0 or more")
        require(self.tune_maps >= 0, "data.tune_maps", self.tune_maps, "0 or more")


@dataclass(frozen=True)
class LoraSettings:
    """The adapter."""

    rank: int = 16
    """Rank of the adapter's matrices."""
    alpha: float = 32.0
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that is dropped in training."""
    vision: bool = False
    """Adapt the vision tower and the merger too, not the language model alone."""

    tokens: bool = False
    """Train the embeddings of the answers' tokens too: for a base that has never written such words."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "lora.rank", self.rank, "1 or more")
        require(self.alpha > 0, "lora.alpha", self.alpha, "above 0")
        require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "0 or more and below 1")


@dataclass(frozen=True)
class TrainSettings:
    """How long and how fast."""

    epochs: float = 3.0
    """Times each map is shown on average; used where max_steps is 0."""
    max_steps: int = 0
    """Optimizer steps; 0 derives them from epochs."""
    time_limit_minutes: float = 0.0
    """End after so many minutes of work even if steps are left, the schedule following the clock; 0 is no
    limit. A run that the clock ends is not reproduced to the bit."""
    batch: int = 32
    """Maps per forward pass: the number to lower when memory runs out."""
    accumulate: int = 1
    """Forward passes per optimizer step: raise it as batch is lowered."""
    learning_rate: float = 2e-4
    """Peak of the learning rate; it falls to 0 along a cosine."""
    warmup: float = 0.03
    """Share of the training over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    clip: float = 1.0
    """Gradients are scaled down to this norm."""
    evaluations: int = 10
    """Accuracy on the held-out maps is measured so often, evenly spread."""
    patience: int = 4
    """Stop after so many evaluations without a better one; 0 never stops early."""
    save_steps: int = 50
    """A checkpoint every so many steps, and after each evaluation."""
    seed: int = 1
    """Seed of the adapter's start, dropout, the order of maps and their augmentation."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass to save memory; auto: on a GPU."""
    threads: int = 0
    """Threads that a CPU computes with; 0 leaves it to torch. Two are slower than one on a busy machine."""
    tensorboard: bool = False
    """Write a tensorboard log beside log.csv."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "time_limit_minutes", "patience", "weight_decay", "seed", "threads"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        for name in ("batch", "accumulate", "evaluations", "save_steps"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        for name in ("epochs", "learning_rate", "clip"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "above 0")
        require(0 <= self.warmup < 1, "train.warmup", self.warmup, "0 or more and below 1")


@dataclass(frozen=True)
class Settings:
    """All settings of ``wafervlm train``."""

    output: str = ""
    """Folder of the adapter; work in progress lies in the same name + ".partial"."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


def read_settings(
    path: Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> tuple[Settings, list[str]]:
    """Read the TOML file ``path``; ``overrides`` (``key=value`` with a TOML value) and then ``values``
    (dotted key to value) win over what it says.

    Returns the settings and, for each key of the Cosmos recipe found, a line that says what became of it.
    Raises ConfigError.
    """
    table = read_table(path)
    parsed = dict(parse_override(text) for text in overrides)
    return settings_from(table, str(path), {**parsed, **(values or {})})


def settings_from(
    table: Mapping[str, Any], where: str = "the settings", overrides: Mapping[str, Any] | None = None
) -> tuple[Settings, list[str]]:
    """As ``read_settings``, from a table of tables that comes from ``where``. Raises ConfigError."""
    flat, over = dict(flatten(table)), dict(overrides or {})
    known = {key for key, _, _ in leaves(Settings)}
    for key in [*flat, *over]:
        if key not in known and key not in RECIPE_KEYS:
            raise ConfigError(
                f"unknown key {key!r} in {where}; {nearest(key, sorted({*known, *RECIPE_KEYS}))}"
            )
    own, notes = translate({**flat, **{key: over[key] for key in over if key in RECIPE_KEYS}}, known)
    return build(Settings, {**own, **{key: over[key] for key in over if key in known}}), notes


def to_dict(settings: Settings) -> dict[str, Any]:
    """Plain nested values; ``settings_from`` reads them back."""
    return dataclasses.asdict(settings)


def flat_dict(settings: Settings) -> dict[str, Any]:
    """Dotted key to value, in order."""
    return dict(flatten(to_dict(settings)))
