"""View: one wafer as the model sees it, however it is given."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from wafervlm.errors import ImageError
from wafervlm.render import RgbImage, render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap, check_dies

Wafer = WaferMap | ArrayLike | str | Path


@dataclass(slots=True)
class View:
    """What the model sees of one wafer, and the nanoseconds it took to read and to render."""

    image: RgbImage
    wafer: WaferMap | None
    name: str
    read: int
    render: int


def make_view(item: Wafer, task: Task, foreign: bool, bins: Mapping[str, int] | None) -> View:
    """Read and draw ``item``; ``foreign`` and ``bins`` are as in ``WaferVLM.predict``. Raises InputError."""
    started = time.perf_counter_ns()
    name = Path(item).stem if isinstance(item, (str, Path)) else ""
    read = _read(item, task, foreign, bins)
    middle = time.perf_counter_ns()
    if isinstance(read, WaferMap):
        image = render(read, task.render)
        return View(image, read, name, middle - started, time.perf_counter_ns() - middle)
    return View(read, None, name, middle - started, 0)


def check_images(images: RgbImage, task: Task) -> RgbImage:
    """``images`` as the graph takes them. Raises ImageError where they are not (B, H, W, 3) uint8 of the
    size that ``task`` draws."""
    spec = task.render
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise ImageError(f"images are {kind}; they must be a uint8 array of shape (B, H, W, 3)")
    if images.ndim != 4 or images.shape[1:] != (spec.height, spec.width, 3):
        raise ImageError(
            f"images have shape {images.shape}; this model takes (B, {spec.height}, {spec.width}, 3), "
            "as wafervlm draws them"
        )
    return np.ascontiguousarray(images)


def _read(item: Wafer, task: Task, foreign: bool, bins: Mapping[str, int] | None) -> WaferMap | RgbImage:
    if isinstance(item, WaferMap):
        return item
    if not isinstance(item, (str, Path)):
        return WaferMap(check_dies(item))
    from wafervlm.readers import read_file

    return read_file(item, task.render, bins=bins, foreign=foreign)
