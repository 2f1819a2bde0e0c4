"""The words of an engine: two more engines in its folder, and what they must reproduce before they may be
used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wafervlm.errors import ManifestError
from wafervlm.manifest import FileEntry, file_entry
from wafervlm.strict import check_range, check_table

FEATURES_ENGINE, STEP_ENGINE = "features.engine", "step.engine"


@dataclass(frozen=True, slots=True)
class GoldenText:
    """What the bundle's own graphs give for one golden map, at exact accuracy on the CPU where the engine was
    built: N times after the task's prompt the likeliest ``tokens`` (N, K), best first, and the natural
    logarithms of their probabilities ``log_probs`` (N, K). The first of each was said before the next,
    whether or not it ends an answer."""

    tokens: tuple[tuple[int, ...], ...]
    log_probs: tuple[tuple[float, ...], ...]

    @property
    def said(self) -> tuple[int, ...]:
        """The likeliest token each time."""
        return tuple(row[0] for row in self.tokens)


@dataclass(frozen=True, slots=True)
class WordsEngines:
    """The engines of the vision tower and of the steps. The second has two profiles: up to ``max_prompt``
    tokens with nothing before them, and one token after up to ``context`` - 1 others. ``golden`` belongs to
    the first of the bundle's golden maps."""

    features: FileEntry
    step: FileEntry
    max_prompt: int
    context: int
    golden: tuple[GoldenText, ...]

    def built_like(self, other: WordsEngines) -> bool:
        """Whether ``other`` was built for the same ends."""
        return (self.max_prompt, self.context) == (other.max_prompt, other.context)


@dataclass(frozen=True, slots=True)
class WordsVerification:
    """The golden texts as the engines gave them: ``features`` and ``step`` are the sha256 of the engines,
    ``max_abs_difference`` the largest of their log-probabilities, and ``token_agreement`` the share of the
    ``tokens`` said that were the likeliest here too."""

    features: str
    step: str
    tokens: int
    max_abs_difference: float
    token_agreement: float

    def is_of(self, words: WordsEngines) -> bool:
        """Whether it was made on these engines."""
        return (self.features, self.step) == (words.features.sha256, words.step.sha256)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


_KEYS: dict[str, type] = {"features": dict, "step": dict, "max_prompt": int, "context": int, "golden": list}
_GOLDEN_KEYS: dict[str, type] = {"tokens": list, "log_probs": list}
_VERIFICATION_KEYS: dict[str, type] = {
    "features": str,
    "step": str,
    "tokens": int,
    "max_abs_difference": float,
    "token_agreement": float,
}


def words_engines(values: Any, where: str) -> WordsEngines:
    """The words that ``values`` of an engine's manifest hold. Raises ManifestError."""
    where = f"the words in {where}"
    check_table(_table(values, where), _KEYS, where)
    entries = {key: file_entry(values[key], where) for key in ("features", "step")}
    named = (entries["features"].path, entries["step"].path)
    checks = {
        "features": (named[0] == FEATURES_ENGINE, f"named {FEATURES_ENGINE}"),
        "step": (named[1] == STEP_ENGINE, f"named {STEP_ENGINE}"),
        "max_prompt": (values["max_prompt"] >= 1, "1 or more"),
        "context": (values["context"] >= values["max_prompt"], "max_prompt or more"),
        "golden": (bool(values["golden"]), "a list of one or more"),
    }
    for key, (good, should) in checks.items():
        check_range(good, key, values[key], should, where)
    golden = tuple(_golden_text(each, where) for each in values["golden"])
    return WordsEngines(**entries, max_prompt=values["max_prompt"], context=values["context"], golden=golden)


def words_verification(values: Any, where: str) -> WordsVerification:
    """The verification of words that ``values`` hold. Raises ManifestError."""
    where = f"the words in {where}"
    check_table(_table(values, where), _VERIFICATION_KEYS, where)
    return WordsVerification(**values)


def _golden_text(values: Any, where: str) -> GoldenText:
    where = f"golden of {where}"
    check_table(_table(values, where), _GOLDEN_KEYS, where)
    tokens, log_probs = values["tokens"], values["log_probs"]
    check_range(_is_grid(tokens, _is_token), "tokens", tokens, "lists of token ids", where)
    shaped = _is_grid(log_probs, _is_finite) and [*map(len, log_probs)] == [*map(len, tokens)]
    check_range(shaped, "log_probs", log_probs, "a number for each token", where)
    return GoldenText(tuple(map(tuple, tokens)), tuple(tuple(map(float, row)) for row in log_probs))


def _is_grid(values: list[Any], good: Callable[[Any], bool]) -> bool:
    return bool(values) and all(isinstance(row, list) and row and all(map(good, row)) for row in values)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _table(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ManifestError(f"{where} must be a table")
    return dict(values)
