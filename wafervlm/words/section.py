"""Words: the section of a manifest that says how a bundle generates text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from wafervlm.errors import ManifestError

_TEXTS = ("opening", "middle", "closing", "features", "step", "tokenizer")


@dataclass(frozen=True, slots=True)
class Words:
    """What it takes to generate text besides the task, whose ``order`` says which comes first:

    ``opening`` + question + ``middle`` + image + ``closing``, or with question and image changed about, is
    the conversation up to the answer, as the chat template writes it. ``image_token`` is the id of the
    token that stands for the image, and ``grid`` the rows and columns of tokens that take its place.
    ``stop`` are the ids that end an answer, ``context`` the tokens of prompt and answer together that the
    graph was made for. ``repetition_penalty`` is the checkpoint's own (N. S. Keskar et al., "CTRL", 2019;
    1 is none). ``features``, ``step`` and ``tokenizer`` are files of the bundle. Raises ManifestError.
    """

    opening: str
    middle: str
    closing: str
    image_token: int
    grid: tuple[int, int]
    stop: tuple[int, ...]
    context: int
    repetition_penalty: float = 1.0
    features: str = "features.onnx"
    step: str = "step.onnx"
    tokenizer: str = "tokenizer.json"

    def __post_init__(self) -> None:
        for name in _TEXTS:
            _check(isinstance(getattr(self, name), str), name, getattr(self, name), "text")
        _check(_whole(self.image_token, 0), "image_token", self.image_token, "a token id")
        _check(_whole(self.context, 1), "context", self.context, "a number of tokens")
        grid, stop, penalty = self.grid, self.stop, self.repetition_penalty
        _check(_list(grid, 1) and len(grid) == 2, "grid", grid, "rows and columns of tokens")
        _check(_list(stop, 0) and len(stop) > 0, "stop", stop, "a list of token ids")
        good = isinstance(penalty, (int, float)) and not isinstance(penalty, bool)
        _check(good and 0 < penalty < math.inf, "repetition_penalty", penalty, "a number greater than 0")
        object.__setattr__(self, "grid", tuple(grid))
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "repetition_penalty", float(penalty))

    @property
    def image_tokens(self) -> int:
        """How many tokens take the image's place."""
        return self.grid[0] * self.grid[1]

    @property
    def files(self) -> tuple[str, str, str]:
        """The files of the bundle that this section names."""
        return self.features, self.step, self.tokenizer

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; ``from_dict`` reads them back."""
        return {**asdict(self), "grid": list(self.grid), "stop": list(self.stop)}

    @classmethod
    def from_dict(cls, values: object, where: str) -> Words:
        """Read what ``to_dict`` says; ``where`` names it in messages. Raises ManifestError."""
        if not isinstance(values, Mapping):
            raise ManifestError(f"words in {where} must be a table, not {values!r}")
        names = [item.name for item in fields(cls)]
        for key in values:
            if key not in names:
                raise ManifestError(
                    f"words in {where} has the unknown key {key!r}; known are {', '.join(names)}"
                )
        for key in names:
            if key not in values:
                raise ManifestError(f"words in {where} lacks the key {key!r}")
        try:
            return cls(**values)
        except ManifestError as error:
            raise ManifestError(f"{where}: {error}") from None


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _list(values: object, least: int) -> bool:
    return isinstance(values, (list, tuple)) and all(_whole(value, least) for value in values)


def _check(good: bool, name: str, value: object, should: str) -> None:
    if not good:
        raise ManifestError(f"{name} of words is {value!r}; it must be {should}")
