"""Steps: what executes the two graphs that generate text, and what it has read so far.

The features graph reads the image once: ``image`` (1, H, W, 3) uint8 to ``features`` (F, n + 1, width)
float32. The step graph reads T tokens after P others: ``tokens`` (1, T) int64, ``positions`` (1, T, 3)
int64, ``image_rows`` (T,) int64, ``features``, ``mask`` (T, P + T) float32 and for each layer i
``past_key.i`` and ``past_value.i`` (1, P, K) float32; it gives ``logits`` (1, V) of the last token and
``key.i`` and ``value.i`` (1, T, K) of the T. ``onnx_steps`` runs them on ONNX Runtime, ``tensorrt_steps``
an engine's.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wafervlm.render import RgbImage
from wafervlm.words.run import Run

IMAGE, FEATURES, LOGITS = "image", "features", "logits"
TOKENS, POSITIONS, ROWS, MASK = "tokens", "positions", "image_rows", "mask"
INPUTS = (TOKENS, POSITIONS, ROWS, FEATURES, MASK)
PAST = "past_"
# exp(-1e4) is 0 in every float format, and -1e4 is a finite value in each of them.
HIDDEN = np.float32(-1e4)

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]


class Reader(Protocol):
    """One conversation that is being read: its image, and the keys and values of ``length`` tokens. Setting
    ``length`` back forgets the last tokens. For one thread at a time."""

    length: int

    def step(self, tokens: Whole, positions: Whole, rows: Whole) -> Floats:
        """Logits (V,) after ``tokens`` (T,) at ``positions`` (T, 3), of which ``rows`` (T,) are the image's;
        their keys and values are kept. Raises PredictionTimeout, Cancelled, and what a graph that fails
        raises."""

    def word(self, token: int, position: int) -> Floats:
        """Logits (V,) after one more ``token`` of text at ``position``."""

    def close(self) -> None:
        """Give back the memory; an end to reading. Closing twice does nothing."""


class Steps(Protocol):
    """The two graphs of a bundle with words, ready to run. Threads may share it, each with its own Reader."""

    @property
    def about(self) -> str:
        """What executes the graphs, in words."""

    def read(self, image: RgbImage, capacity: int, run: Run) -> Reader:
        """Read ``image`` (1, H, W, 3) uint8 and make room for ``capacity`` tokens. Raises as a step does."""

    def close(self) -> None:
        """Give back what the graphs hold; answers under way end with ClosedError where they need it."""


def causal_mask(count: int, length: int) -> Floats:
    """``mask`` (count, length + count) of ``count`` tokens after ``length`` others, which all of them see."""
    mask = np.zeros((count, length + count), np.float32)
    if count > 1:
        mask[:, length:][np.triu_indices(count, 1)] = HIDDEN
    return mask
