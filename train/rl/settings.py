"""Settings of the reinforcement learning: a TOML file with a table [rl], read into frozen dataclasses.

The text under a field is its help, as in ``train.config``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from train.config import LoraSettings, ModelSettings
from train.settings_file import require, settings_of
from wafervlm.errors import ConfigError

Dimension = Literal["all", "spatial", "morphology", "root_cause"]
Scale = Literal["group", "batch", "none"]
FormulaName = Literal["strict", "published", "optimised"]


@dataclass(frozen=True)
class RowSettings:
    """Which prompts are answered, and which judge the policy."""

    dataset: str = ""
    """Folder that `wafervlm data vqa` wrote: its rl.json holds the prompts, its dies the truth."""
    dimension: Dimension = "all"
    """Prompts of one dimension of the rubrics alone; a second run from the first one's adapter takes
    another."""
    descriptions: bool = False
    """Ask for the full description of each wafer too, as a hard prompt: what `wafervlm describe` asks."""
    balance: bool = True
    """Within a difficulty draw all classes equally often; false draws prompts as often as they are there."""
    tune_rows: int = 216
    """At most so many prompts of the part tune are answered at each evaluation, as many of each class; 0
    takes all."""
    tune_maps: int = 180
    """At most so many maps of the part tune are classified at each evaluation, to see what words cost
    there; 0 takes none."""

    def __post_init__(self) -> None:
        require(self.tune_rows >= 0, "data.tune_rows", self.tune_rows, "0 or more")
        require(self.tune_maps >= 0, "data.tune_maps", self.tune_maps, "0 or more")


@dataclass(frozen=True)
class GspoSettings:
    """How the policy answers, and how far one set of answers moves it."""

    prompts: int = 8
    """Prompts that are answered in a round, one after the other in the curriculum's order."""
    completions: int = 8
    """Answers to each prompt: what one earns is judged by the mean of the others."""
    max_tokens: int = 256
    """Longest answer in tokens; one that is not ended by then is cut, and earns nothing for its format."""
    temperature: float = 1.0
    """Of sampling in training; held-out prompts are answered greedily."""
    updates: int = 4
    """Parts that the answers of a round are split into, an optimizer step on each: from the second on the
    policy differs from the one that answered, and clipping acts."""
    passes: int = 1
    """Times that the answers of a round are gone through."""
    epsilon: float = 3e-4
    """The ratio of an answer's likelihoods, by token, is clipped below 1 minus this (3e-4 in arXiv
    2507.18071)."""
    epsilon_high: float = 4e-4
    """The ratio is clipped above 1 plus this (4e-4 in arXiv 2507.18071)."""
    beta: float = 0.0
    """Weight of the KL divergence from where the training starts: the adapter it goes on from, else the
    base; 0 does without."""
    scale: Scale = "group"
    """Advantages are divided by the standard deviation of the rewards of a prompt (group), of a round
    (batch), or not (none)."""
    tags: bool = True
    """Ask for <REASONING> and <SOLUTION> as the rows' prompts do. false asks the bare question, as the SFT of
    small models does, and the whole answer is the solution."""

    def __post_init__(self) -> None:
        for name in ("prompts", "max_tokens", "updates", "passes"):
            require(getattr(self, name) >= 1, f"rl.{name}", getattr(self, name), "1 or more")
        require(self.completions >= 2, "rl.completions", self.completions, "2 or more")
        for name in ("temperature", "epsilon", "epsilon_high"):
            require(getattr(self, name) > 0, f"rl.{name}", getattr(self, name), "above 0")
        require(self.epsilon < 1, "rl.epsilon", self.epsilon, "below 1")
        require(self.beta >= 0, "rl.beta", self.beta, "0 or more")


@dataclass(frozen=True)
class RewardSettings:
    """What an answer earns: the mean of the parts that apply to its prompt, by these weights, 0 to 1."""

    rubric: float = 0.5
    """Weight of the rule score: phrases that had to be said or avoided."""
    claims: float = 0.4
    """Weight of the claims checked against the dies: their precision, and whether they say what was asked."""
    format: float = 0.1
    """Weight of the form: the tags in order, or without rl.tags that the answer comes to its end."""
    formula: FormulaName = "strict"
    """Formula of the rule score; under strict, silence and saying everything earn nothing."""
    claims_floor: int = 6
    """Supported claims on what was asked that earn the whole part; fewer do where the reference makes
    fewer."""

    def __post_init__(self) -> None:
        for name in ("rubric", "claims", "format"):
            require(getattr(self, name) >= 0, f"reward.{name}", getattr(self, name), "0 or more")
        total = self.rubric + self.claims
        require(total > 0, "reward.rubric and reward.claims", total, "above 0 together")
        require(self.claims_floor >= 1, "reward.claims_floor", self.claims_floor, "1 or more")


@dataclass(frozen=True)
class RlTrainSettings:
    """How long and how fast."""

    epochs: float = 1.0
    """Times each prompt is answered on average; used where max_steps is 0."""
    max_steps: int = 0
    """Optimizer steps, rl.updates * rl.passes of them to a round; 0 derives them from epochs."""
    time_limit_minutes: float = 0.0
    """End after so many minutes of work even if steps are left; 0 is no limit. The curriculum is laid out
    over all steps, so a run that the clock ends has seen less of the hard prompts."""
    batch: int = 8
    """Answers per forward and backward pass: the number to lower when memory runs out."""
    learning_rate: float = 5e-5
    """Peak of the learning rate; it falls to 0 along a cosine."""
    warmup: float = 0.03
    """Share of the training over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    clip: float = 1.0
    """Gradients are scaled down to this norm."""
    evaluations: int = 5
    """Held-out prompts are answered so often, evenly spread, and once before the first step."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0 never stops early."""
    save_steps: int = 20
    """A checkpoint every so many steps, when the round ends, and after each evaluation."""
    seed: int = 1
    """Seed of the order of prompts and of the answers drawn."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass to save memory; auto: on a GPU."""
    threads: int = 0
    """Threads that a CPU computes with; 0 leaves it to torch."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "time_limit_minutes", "patience", "weight_decay", "seed", "threads"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        for name in ("batch", "evaluations", "save_steps"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        for name in ("epochs", "learning_rate", "clip"):
            require(getattr(self, name) > 0, f"train.{name}", getattr(self, name), "above 0")
        require(0 <= self.warmup < 1, "train.warmup", self.warmup, "0 or more and below 1")


@dataclass(frozen=True)
class RlSettings:
    """All settings of ``wafervlm train`` with a table [rl]."""

    output: str = ""
    """Folder of the adapter; work in progress lies in the same name + ".partial"."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: RowSettings = field(default_factory=RowSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    rl: GspoSettings = field(default_factory=GspoSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    train: RlTrainSettings = field(default_factory=RlTrainSettings)

    def __post_init__(self) -> None:
        part = self.train.batch * self.rl.updates
        require(
            self.answers % part == 0,
            "rl.prompts * rl.completions",
            self.answers,
            f"a multiple of train.batch * rl.updates, {part}",
        )
        if self.model.adapter and self.lora != LoraSettings():
            raise ConfigError(
                "[lora] is set and model.adapter too: an adapter that is gone on from keeps its rank and its "
                "modules; leave [lora] out"
            )

    @property
    def answers(self) -> int:
        """Answers of a round."""
        return self.rl.prompts * self.rl.completions

    @property
    def round_steps(self) -> int:
        """Optimizer steps of a round."""
        return self.rl.updates * self.rl.passes


def read_rl_settings(
    path: Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> RlSettings:
    """Read the TOML file ``path``; ``overrides`` and ``values`` win as in ``train.config.read_settings``.
    Raises ConfigError."""
    return settings_of(RlSettings, path, overrides, values)


def flat_settings(settings: RlSettings) -> dict[str, Any]:
    """Dotted key to value, in order; [lora] is left out where an adapter says what it holds."""
    flat: dict[str, Any] = {}
    for name, value in dataclasses.asdict(settings).items():
        if name == "lora" and settings.model.adapter:
            continue
        inner = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else None
        flat.update(inner if inner is not None else {name: value})
    return flat
