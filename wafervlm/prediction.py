"""Prediction: what a model answered for one wafer."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import WaferVLMError
from wafervlm.render import RgbImage
from wafervlm.task import JOIN, NONE
from wafervlm.wafermap import WaferMap

if TYPE_CHECKING:
    from PIL.Image import Image

_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, repr=False)
class Prediction:
    """The answer for one wafer.

    ``scores`` are the probabilities of all labels, in the task's order, and sum to 1; ``confidence`` is
    the score of ``label``. ``timing_ms`` holds the milliseconds of read, render, run and total.
    ``locked`` is False for an image that is not a wafer map of the task: its answer is outside the
    prompt-and-render lock. ``task`` and ``bundle`` are the digests of the two. ``wafer`` is what was
    judged; ``image`` is (H, W, 3) uint8 RGB, what the model saw where there was no wafer map. Two
    predictions are equal when all but their timing and image are.

    Of a multi-label task ``threshold`` is set: ``scores`` are the probabilities of its classes, each by
    itself, ``label`` joins those that reach it with "+", "none" where there is none, and ``confidence`` is
    the probability of just these, the classes taken as independent. Raises WaferVLMError for scores that are
    no probabilities.
    """

    label: str
    confidence: float
    scores: Mapping[str, float]
    timing_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    id: str = ""
    locked: bool = True
    task: str = ""
    bundle: str = ""
    wafer: WaferMap | None = None
    image: RgbImage | None = field(default=None, compare=False)
    threshold: float | None = None

    def __post_init__(self) -> None:
        scores = {label: float(score) for label, score in self.scores.items()}
        timing = {part: float(spent) for part, spent in self.timing_ms.items()}
        object.__setattr__(self, "scores", MappingProxyType(scores))
        object.__setattr__(self, "timing_ms", MappingProxyType(timing))
        object.__setattr__(self, "confidence", float(self.confidence))
        _check(self)

    def __hash__(self) -> int:
        return hash((self.id, self.label, self.bundle, tuple(self.scores.items())))

    def __reduce__(self) -> tuple[Callable[..., Prediction], tuple[Any, ...]]:
        # Read-only mappings cannot be pickled.
        values = (getattr(self, item.name) for item in fields(self))
        return Prediction, tuple(dict(v) if isinstance(v, Mapping) else v for v in values)

    def __repr__(self) -> str:
        name = f" {self.id!r}" if self.id else ""
        spent = f" in {self.timing_ms['total']:.1f} ms" if "total" in self.timing_ms else ""
        outside = "" if self.locked else ", outside the lock"
        return f"<Prediction{name} {self.label} {self.confidence:.3f}{spent}{outside}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are the answer: one, or of a multi-label task any number."""
        if self.threshold is None:
            return (self.label,)
        return tuple(label for label, score in self.scores.items() if score >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON. Of the wafer its digest and counts, of the pictures nothing."""
        several = {} if self.threshold is None else {"labels": self.labels, "threshold": self.threshold}
        return {
            "id": self.id,
            "label": self.label,
            **several,
            "confidence": self.confidence,
            "scores": dict(self.scores),
            "timing_ms": dict(self.timing_ms),
            "locked": self.locked,
            "task": self.task,
            "bundle": self.bundle,
            "wafer": None if self.wafer is None else _summary(self.wafer),
        }

    def plot(self) -> Image:
        """Draw the wafer beside the scores of all labels: an RGB picture, 960 pixels wide."""
        from wafervlm.plot import draw

        return draw(self)

    def _repr_png_(self) -> bytes:
        """The plot as PNG, which notebooks show."""
        file = io.BytesIO()
        self.plot().save(file, "PNG")
        return file.getvalue()


def _check(prediction: Prediction) -> None:
    scores, label = prediction.scores, prediction.label
    total = math.fsum(scores.values()) if prediction.threshold is None else 1.0
    if not all(0 <= score <= 1 + _TOLERANCE for score in scores.values()) or not abs(total - 1) <= _TOLERANCE:
        raise WaferVLMError(
            f"the scores {dict(scores)} are not probabilities (they sum to {total}); "
            "check the bundle with: wafervlm verify"
        )
    if prediction.threshold is None:
        said, sure = label in scores, scores.get(label, -1.0)
    else:
        said = label == (JOIN.join(prediction.labels) or NONE)
        sure = set_confidence(scores, prediction.labels)
    if not said or not abs(sure - prediction.confidence) <= _TOLERANCE:
        raise WaferVLMError(
            f"label {label!r} with confidence {prediction.confidence} is not what the scores say: "
            f"{dict(scores)}"
        )


def set_confidence(scores: Mapping[str, float], shown: Iterable[str]) -> float:
    """The probability that just the classes ``shown`` are, of independent classes with ``scores``."""
    found = set(shown)
    return math.prod(score if label in found else 1 - score for label, score in scores.items())


def _summary(wafer: WaferMap) -> dict[str, Any]:
    rows, columns = wafer.shape
    return {
        "rows": rows,
        "columns": columns,
        "dies": wafer.die_count,
        "fails": wafer.fail_count,
        "orientation": wafer.orientation,
        "lot": wafer.lot,
        "digest": wafer.digest,
    }


def softmax(log_probs: NDArray[np.floating[Any]], temperature: float) -> NDArray[np.float64]:
    """Probabilities float64 (B, L): softmax over the last axis of ``log_probs / temperature``."""
    scaled = log_probs.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities
