"""Sampling: how the next token is chosen from the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import UsageError

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Greedy at ``temperature`` 0; above it, tokens are drawn from softmax(logits / temperature) among the
    ``top_k`` likeliest (0: all) that together make up the probability ``top_p`` (1: all). The same ``seed``
    draws the same; None draws anew each time. Raises UsageError for what cannot be meant."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check(_number(self.temperature) and 0 <= self.temperature < math.inf, "temperature", "0 or more")
        _check(_whole(self.top_k), "top_k", "a whole number, 0 for all tokens")
        _check(_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "greater than 0 and at most 1")
        _check(self.seed is None or _whole(self.seed), "seed", "a whole number from 0, or None")
        if not self.temperature and (self.top_k or self.top_p < 1 or self.seed is not None):
            raise UsageError("top_k, top_p and seed do nothing at temperature 0; give a temperature as well")


class Chooser:
    """Chooses one token after the other. ``prompt`` holds the ids that stand before the answer."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], penalty: float = 1.0) -> None:
        self._sampling, self._penalty = sampling, penalty
        self._seen = set(prompt)
        self._random = np.random.default_rng(sampling.seed)

    def choose(self, logits: Logits) -> int:
        """The next token's id, given the ``logits`` (V,)."""
        if self._penalty != 1:
            logits = penalised(logits, sorted(self._seen), self._penalty)
        token = self._draw(logits) if self._sampling.temperature else int(logits.argmax())
        self._seen.add(token)
        return token

    def _draw(self, logits: Logits) -> int:
        shares = probabilities(logits, self._sampling)
        kept = np.flatnonzero(shares)
        return int(self._random.choice(kept, p=shares[kept]))


def probabilities(logits: Logits, sampling: Sampling) -> NDArray[np.float64]:
    """The probabilities (V,) that tokens are drawn with: temperature, then top_k, which keeps all that tie
    for the last place, then top_p, in the order that transformers has."""
    scaled = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        least = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        scaled = np.where(scaled < least, -np.inf, scaled)
    shares = _softmax(scaled)
    if sampling.top_p < 1:
        rising = np.argsort(shares, kind="stable")
        dropped = rising[:-1][np.cumsum(shares[rising[:-1]]) <= 1 - sampling.top_p]
        scaled[dropped] = -np.inf
        shares = _softmax(scaled)
    return shares


def penalised(logits: Logits, seen: Sequence[int], penalty: float) -> Logits:
    """``logits`` (V,) with those of the tokens ``seen`` divided by ``penalty``, or multiplied where they are
    negative (N. S. Keskar et al., "CTRL", 2019)."""
    lowered: Logits = logits.copy()
    values = lowered[list(seen)]
    lowered[list(seen)] = np.where(values < 0, values * penalty, values / penalty)
    return lowered


def _softmax(scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scaled - scaled.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(good: bool, name: str, should: str) -> None:
    if not good:
        raise UsageError(f"{name} must be {should}")
