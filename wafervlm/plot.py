"""The picture of a Prediction: the wafer beside the scores, drawn with Pillow alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wafervlm.render import RECIPE_PALETTE, RenderSpec, render

if TYPE_CHECKING:
    from wafervlm.prediction import Prediction
    from wafervlm.wafermap import WaferMap

Colour = tuple[int, int, int]

WIDTH, MARGIN, WAFER = 960, 32, 384
_ROW = 34
_TOP = 148  # where the bars begin
PAPER, INK, FAINT, TRACK = (255, 255, 255), (33, 37, 41), (108, 117, 125), (237, 239, 242)
_BAR, _BEST, WARN = (160, 196, 195), RECIPE_PALETTE[1], (176, 88, 0)


def draw(prediction: Prediction) -> Image.Image:
    """Draw ``prediction``: an RGB picture, 960 pixels wide and as high as its labels need."""
    bottom = _TOP + _ROW * len(prediction.scores) + MARGIN
    picture = Image.new("RGB", (WIDTH, max(bottom, WAFER + 2 * MARGIN + 28)), PAPER)
    pen = ImageDraw.Draw(picture)
    picture.paste(_wafer(prediction), (MARGIN, MARGIN))
    pen.text(
        (MARGIN, MARGIN + WAFER + 10),
        fit(caption(prediction.id, prediction.wafer), WAFER, 15),
        FAINT,
        font(15),
    )
    _head(pen, prediction)
    _bars(pen, prediction)
    return picture


def _wafer(prediction: Prediction) -> Image.Image:
    """The wafer, or the image that was judged in its place, as a square without any blur."""
    if prediction.wafer is not None:
        return Image.fromarray(render(prediction.wafer, RenderSpec(WAFER, WAFER)))
    if prediction.image is not None:
        seen = Image.fromarray(np.ascontiguousarray(prediction.image))
        return seen.resize((WAFER, WAFER), Image.Resampling.NEAREST)
    return Image.new("RGB", (WAFER, WAFER), TRACK)


def caption(name: str, wafer: WaferMap | None) -> str:
    """What stands under a wafer: its id, its size, how many dies fail."""
    parts = [name] if name else []
    if wafer is not None:
        parts.append(
            f"{wafer.shape[0]} x {wafer.shape[1]}, {wafer.fail_count} of {wafer.die_count} dies fail"
        )
    return "   ".join(parts)


def _head(pen: ImageDraw.ImageDraw, prediction: Prediction) -> None:
    left, width = _left(), WIDTH - _left() - MARGIN
    # The largest size that fits the whole label, from 40 pixels down to 24.
    size = next((s for s in range(40, 24, -2) if font(s).getlength(prediction.label) <= width), 24)
    pen.text((left, MARGIN + 32), fit(prediction.label, width, size), INK, font(size), anchor="ls")
    notes = f"confidence {prediction.confidence:.1%}"
    if "total" in prediction.timing_ms:
        notes += f"   in {prediction.timing_ms['total']:.1f} ms"
    pen.text((left, MARGIN + 46), notes, FAINT, font(18))
    if not prediction.locked:
        pen.text((left, MARGIN + 74), "outside the lock: not a wafer map of this task", WARN, font(16))


def _bars(pen: ImageDraw.ImageDraw, prediction: Prediction) -> None:
    face, left = font(17), _left()
    names = {label: fit(label, 200, 17) for label in prediction.scores}
    start = left + int(max(face.getlength(name) for name in names.values())) + 14
    end = WIDTH - MARGIN - int(face.getlength("100.0%")) - 12
    for row, (label, score) in enumerate(prediction.scores.items()):
        top, best = _TOP + _ROW * row, label in prediction.labels
        middle, ink = top + _ROW // 2, INK if best else FAINT
        pen.text((start - 14, middle), names[label], ink, face, anchor="rm")
        pen.rectangle((start, top + 7, end, top + _ROW - 7), TRACK)
        length = round((end - start) * min(score, 1.0))
        if length:
            pen.rectangle((start, top + 7, start + length, top + _ROW - 7), _BEST if best else _BAR)
        pen.text((WIDTH - MARGIN, middle), f"{score:.1%}", ink, face, anchor="rm")


def _left() -> int:
    return 2 * MARGIN + WAFER + 8


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at ``size`` pixels."""
    return ImageFont.load_default(size)


def fit(text: str, width: int, size: int) -> str:
    """``text``, with its end left out where it would be wider than ``width`` pixels."""
    face = font(size)
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
