"""Settings of a fine-tuning: a TOML file read into frozen dataclasses.

The text under a field is its help. A key that is not known is refused with the nearest known one. The
keys of the Cosmos recipe's own ``sft.toml`` are understood too (``train.cosmos_toml``).
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from train.cosmos_toml import RECIPE_KEYS, translate
from wafervlm.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Augment = Literal["none", "symmetries", "strong"]
T = TypeVar("T")


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Raise a ConfigError that says what the setting ``key`` is and what it must be, unless ``holds``."""
    if not holds:
        raise ConfigError(f"{key} is {value!r}; it must be {rule}")


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
    `wafervlm data vqa`, answered by what is measured on the dies as they are shown."""
    unsaid: float = 0.0
    """Chance that a description leaves out a statement other than share, zone and clock position: so trained,
    the model says only what it holds to be right with more than 0.5 / (1 - unsaid)."""
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
        require(
            not (self.vqa and self.unsaid),
            "data.unsaid",
            self.unsaid,
            "0 where data.vqa names a folder: its rows are taken as they are",
        )
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
    parsed = dict(_parse_override(text) for text in overrides)
    return settings_from(table, str(path), {**parsed, **(values or {})})


def read_table(path: Path) -> dict[str, Any]:
    """The tables of the TOML file ``path``. Raises ConfigError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the settings file {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the settings file {path} is not valid TOML: {error}") from None


def settings_from(
    table: Mapping[str, Any], where: str = "the settings", overrides: Mapping[str, Any] | None = None
) -> tuple[Settings, list[str]]:
    """As ``read_settings``, from a table of tables that comes from ``where``. Raises ConfigError."""
    flat, over = dict(_flatten(table)), dict(overrides or {})
    known = {key for key, _, _ in leaves(Settings)}
    for key in [*flat, *over]:
        if key not in known and key not in RECIPE_KEYS:
            raise ConfigError(
                f"unknown key {key!r} in {where}; {_nearest(key, sorted({*known, *RECIPE_KEYS}))}"
            )
    own, notes = translate({**flat, **{key: over[key] for key in over if key in RECIPE_KEYS}}, known)
    return _build(Settings, {**own, **{key: over[key] for key in over if key in known}}), notes


def settings_of(
    cls: type[T], path: Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> T:
    """Read the TOML file ``path`` into any settings class ``cls`` of nested dataclasses; ``overrides`` and
    ``values`` win as in ``read_settings``.

    Raises ConfigError for an unknown key, with the nearest known one, a wrong type and a wrong value.
    """
    over = {**dict(_parse_override(text) for text in overrides), **(values or {})}
    flat = {**dict(_flatten(read_table(path))), **over}
    known = [key for key, _, _ in leaves(cls)]
    for key in flat:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {path}; {_nearest(key, sorted(known))}")
    return _build(cls, flat)


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted key, default, help) of every setting of a settings class, in order."""
    texts = field_help(cls)
    for f, kind in _fields(cls):
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast(type, kind), f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f.default, texts.get(f.name, "")


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """The text that stands under each field of a dataclass, by field name, on one line."""
    (body,) = (
        node.body
        for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        if isinstance(node, ast.ClassDef)
    )
    return {
        target.target.id: " ".join(text.value.value.split())
        for target, text in itertools.pairwise(body)
        if isinstance(target, ast.AnnAssign)
        and isinstance(target.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def to_dict(settings: Settings) -> dict[str, Any]:
    """Plain nested values; ``settings_from`` reads them back."""
    return dataclasses.asdict(settings)


def flat_dict(settings: Settings) -> dict[str, Any]:
    """Dotted key to value, in order."""
    return dict(_flatten(to_dict(settings)))


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(f, hints[f.name]) for f in dataclasses.fields(cls)]


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not key=value, as in train.batch=16")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is text, as people write it on a command line.
        return key.strip(), value.strip()


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        tails = {name.rpartition(".")[2]: name for name in known}
        close = difflib.get_close_matches(key.rpartition(".")[2], list(tails), n=1, cutoff=0.6)
        near = [tails[name] for name in close]
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _build(cls: type[T], flat: Mapping[str, Any], prefix: str = "") -> T:
    values: dict[str, Any] = {}
    for f, kind in _fields(cls):
        key = prefix + f.name
        if dataclasses.is_dataclass(kind):
            values[f.name] = _build(typing.cast(type, kind), flat, key + ".")
        elif key in flat:
            values[f.name] = _converted(key, flat[key], kind)
    return cls(**values)


def _converted(key: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        # TOML has no null: a setting that may be None is left out for it.
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{key} is {value!r}; it must be one of {', '.join(choices)}{hint}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}; it must be a finite number")
    if type(value) is not kind:
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ConfigError(f"{key} is {value!r}; it must be {wanted}")
    return value
