"""What a checkpoint's image processor does to pixels, for a graph that must do the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.vision import Normalisation


def normalisation_of(processor: Any) -> Normalisation:
    """The normalisation that the image processor of ``processor`` is configured for."""
    images = processor.image_processor
    mean = images.image_mean if images.do_normalize else (0.0, 0.0, 0.0)
    std = images.image_std if images.do_normalize else (1.0, 1.0, 1.0)
    rescale = float(images.rescale_factor) if images.do_rescale else 1.0
    return Normalisation(rescale, _channels(mean), _channels(std))


def _channels(values: object) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in np.broadcast_to(np.asarray(values, dtype=np.float64), 3))
    return red, green, blue
