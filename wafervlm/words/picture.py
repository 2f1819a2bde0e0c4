"""The picture of a checked Description: the wafer with the dies that bear out its claims, beside the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from wafervlm.claims import Checked, Verdict
from wafervlm.errors import UsageError
from wafervlm.plot import FAINT, INK, MARGIN, PAPER, WAFER, WARN, WIDTH, caption, fit, font
from wafervlm.wafermap import FAIL, WaferMap
from wafervlm.words.checking import phrase
from wafervlm.words.description import Description

Colour = tuple[int, int, int]

# Quiet dies, so that the marked ones stand out; marks told apart by all common kinds of colour vision
# (M. Okabe and K. Ito, "Color Universal Design", 2008).
_QUIET: tuple[Colour, Colour, Colour] = ((246, 247, 248), (214, 219, 223), (120, 130, 140))
_MARKS: tuple[Colour, ...] = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0))
_LINE, _CLAIM = 22, 24
_TEXT, _SMALL = 16, 14
_WORDS = {
    Verdict.SUPPORTED: "supported",
    Verdict.UNTOLD: "cannot be told",
    Verdict.CONTRADICTED: "struck",
}


@dataclass(frozen=True)
class _Row:
    mark: Colour | None
    verdict: Verdict
    text: str


def draw(said: Description) -> Image.Image:
    """Draw ``said``: RGB, 960 pixels wide and as high as it needs. Dies that bear out a claim have the colour
    of the square beside it. Raises UsageError where nothing was checked."""
    if said.claims is None or said.wafer is None:
        raise UsageError("the text was not checked against dies; describe the wafer with check=True")
    marks = _marks([*said.claims, *said.struck])
    rows = [_row(each, marks) for each in (*said.claims, *said.struck)]
    text = list(_wrapped(said.text, WIDTH - _left() - MARGIN))
    height = 2 * MARGIN + _LINE * len(text) + 16 + _CLAIM * len(rows)
    picture = Image.new("RGB", (WIDTH, max(height, WAFER + 2 * MARGIN + 28)), PAPER)
    pen = ImageDraw.Draw(picture)
    picture.paste(_wafer(said.wafer, marks), (MARGIN, MARGIN))
    pen.text((MARGIN, MARGIN + WAFER + 10), fit(caption(said.id, said.wafer), WAFER, 15), FAINT, font(15))
    for place, line in enumerate(text):
        pen.text((_left(), MARGIN + _LINE * place), line, INK, font(_TEXT))
    for place, row in enumerate(rows):
        _draw_row(pen, MARGIN + _LINE * len(text) + 16 + _CLAIM * place, row)
    return picture


def _marks(found: list[Checked]) -> dict[bytes, tuple[Colour, Checked]]:
    """A colour for each set of dies that bears out a claim, in order; the rest share the last."""
    marks: dict[bytes, tuple[Colour, Checked]] = {}
    for each in found:
        if each.supported and each.dies is not None and len(each.dies) and (key := _key(each)) not in marks:
            marks[key] = _MARKS[min(len(marks), len(_MARKS) - 1)], each
    return marks


def _key(each: Checked) -> bytes:
    return b"" if each.dies is None else np.ascontiguousarray(each.dies).tobytes()


def _row(each: Checked, marks: dict[bytes, tuple[Colour, Checked]]) -> _Row:
    mark = marks.get(_key(each)) if each.supported else None
    # What is struck stands in the text no more.
    quoted = f'"{phrase(each)}": ' if each.contradicted else ""
    return _Row(mark[0] if mark else None, each.verdict, quoted + each.why)


def _draw_row(pen: ImageDraw.ImageDraw, top: int, row: _Row) -> None:
    left = _left()
    struck = row.verdict is Verdict.CONTRADICTED
    if row.mark:
        pen.rectangle((left, top + 4, left + 12, top + 16), row.mark)
    ink = WARN if struck else INK if row.verdict is Verdict.SUPPORTED else FAINT
    pen.text((left + 20, top), _WORDS[row.verdict], ink, font(_SMALL))
    begin = left + 124
    text = fit(row.text, WIDTH - MARGIN - begin, _SMALL)
    pen.text((begin, top), text, FAINT, font(_SMALL))


def _wafer(wafer: WaferMap, marks: dict[bytes, tuple[Colour, Checked]]) -> Image.Image:
    """The wafer in quiet colours; a die that several sets hold has the colour of the smallest."""
    cells = np.zeros((*wafer.shape, 3), np.uint8)
    cells[:] = np.asarray(_QUIET, np.uint8)[wafer.dies]
    chosen = sorted(marks.values(), key=lambda mark: -len(mark[1].dies if mark[1].dies is not None else ()))
    for colour, each in chosen:
        rows, columns = np.asarray(each.dies).T
        failing = wafer.dies[rows, columns] == FAIL
        cells[rows[failing], columns[failing]] = colour
    return Image.fromarray(cells).resize((WAFER, WAFER), Image.Resampling.NEAREST)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """``text`` in lines of at most ``width`` pixels; its own line ends stay."""
    face = font(_TEXT)
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and face.getlength(longer) > width:
                yield line
                line = word
            else:
                line = longer
        yield line


def _left() -> int:
    return 2 * MARGIN + WAFER + 8
