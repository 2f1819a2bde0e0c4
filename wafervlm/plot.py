"""The picture of a Prediction: the wafer beside the scores, drawn with Pillow alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wafervlm.render import RECIPE_PALETTE, RenderSpec, render

if TYPE_CHECKING:
    from wafervlm.prediction import Prediction

Colour = tuple[int, int, int]

_WIDTH, _MARGIN, _WAFER = 960, 32, 384
_ROW = 34
_TOP = 148  # where the bars begin
_PAPER, _INK, _FAINT, _TRACK = (255, 255, 255), (33, 37, 41), (108, 117, 125), (237, 239, 242)
_BAR, _BEST, _WARN = (160, 196, 195), RECIPE_PALETTE[1], (176, 88, 0)


def draw(prediction: Prediction) -> Image.Image:
    """Draw ``prediction``: an RGB picture, 960 pixels wide and as high as its labels need."""
    below = _TOP + _ROW * len(prediction.scores) + _MARGIN
    picture = Image.new("RGB", (_WIDTH, max(below, _WAFER + 2 * _MARGIN + 28)), _PAPER)
    pen = ImageDraw.Draw(picture)
    picture.paste(_wafer(prediction), (_MARGIN, _MARGIN))
    pen.text((_MARGIN, _MARGIN + _WAFER + 10), _fit(_caption(prediction), _WAFER, 15), _FAINT, _font(15))
    _head(pen, prediction)
    _bars(pen, prediction)
    return picture


def _wafer(prediction: Prediction) -> Image.Image:
    """The wafer, or the image that was judged in its place, as a square without any blur."""
    if prediction.wafer is not None:
        return Image.fromarray(render(prediction.wafer, RenderSpec(_WAFER, _WAFER)))
    if prediction.image is not None:
        seen = Image.fromarray(np.ascontiguousarray(prediction.image))
        return seen.resize((_WAFER, _WAFER), Image.Resampling.NEAREST)
    return Image.new("RGB", (_WAFER, _WAFER), _TRACK)


def _caption(prediction: Prediction) -> str:
    parts = [prediction.id] if prediction.id else []
    wafer = prediction.wafer
    if wafer is not None:
        parts.append(
            f"{wafer.shape[0]} x {wafer.shape[1]}, {wafer.fail_count} of {wafer.die_count} dies fail"
        )
    return "   ".join(parts)


def _head(pen: ImageDraw.ImageDraw, prediction: Prediction) -> None:
    left, width = _left(), _WIDTH - _left() - _MARGIN
    # The largest size that fits the whole label, from 40 pixels down to 24.
    size = next((s for s in range(40, 24, -2) if _font(s).getlength(prediction.label) <= width), 24)
    pen.text((left, _MARGIN + 32), _fit(prediction.label, width, size), _INK, _font(size), anchor="ls")
    notes = f"confidence {prediction.confidence:.1%}"
    if "total" in prediction.timing_ms:
        notes += f"   in {prediction.timing_ms['total']:.1f} ms"
    pen.text((left, _MARGIN + 46), notes, _FAINT, _font(18))
    if not prediction.locked:
        pen.text((left, _MARGIN + 74), "outside the lock: not a wafer map of this task", _WARN, _font(16))


def _bars(pen: ImageDraw.ImageDraw, prediction: Prediction) -> None:
    font, left = _font(17), _left()
    names = {label: _fit(label, 200, 17) for label in prediction.scores}
    start = left + int(max(font.getlength(name) for name in names.values())) + 14
    end = _WIDTH - _MARGIN - int(font.getlength("100.0%")) - 12
    for row, (label, score) in enumerate(prediction.scores.items()):
        top, best = _TOP + _ROW * row, label == prediction.label
        middle, ink = top + _ROW // 2, _INK if best else _FAINT
        pen.text((start - 14, middle), names[label], ink, font, anchor="rm")
        pen.rectangle((start, top + 7, end, top + _ROW - 7), _TRACK)
        length = round((end - start) * min(score, 1.0))
        if length:
            pen.rectangle((start, top + 7, start + length, top + _ROW - 7), _BEST if best else _BAR)
        pen.text((_WIDTH - _MARGIN, middle), f"{score:.1%}", ink, font, anchor="rm")


def _left() -> int:
    return 2 * _MARGIN + _WAFER + 8


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, width: int, size: int) -> str:
    """``text``, with its end left out where it would be wider than ``width`` pixels."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
