"""Picture sheets: the first suspects with their labels, and near-centre and far maps of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from train.cleaning.source import Labelled
from train.cleaning.suspects import Judged
from wafervlm.render import RenderSpec, render

MAP, GAP, LINE = 160, 14, 17
COLUMNS, SHOWN = 8, 5
_PAPER, _INK, _FAINT, _WARN = (255, 255, 255), (33, 37, 41), (108, 117, 125), (176, 60, 0)
_SPEC = RenderSpec(MAP, MAP)


@dataclass(frozen=True, slots=True)
class Tile:
    """A map of ``row`` with lines of (text, colour) below it."""

    row: int
    lines: tuple[tuple[str, tuple[int, int, int]], ...]


def write_sheet(path: Path, given: Labelled, judged: Judged, shown: int) -> None:
    """Write the first ``shown`` suspects: rank and id, the given label, the suggested one with the score."""
    ids = given.rows.source_index
    tiles = [
        Tile(
            s.row,
            (
                (f"{rank}   id {ids[s.row]}", _FAINT),
                (f"given {s.given}", _INK),
                (f"looks {s.suggested} {s.score:.2f}", _WARN),
            ),
        )
        for rank, s in enumerate(judged.suspects[:shown], start=1)
    ]
    _grid(given, [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]).save(path)


def write_representatives_sheet(path: Path, given: Labelled, judged: Judged) -> None:
    """Write one line of maps for each class: near the centres of its clusters, then far from them."""
    ids, lines = given.rows.source_index, []
    for label, near in judged.near.items():
        chosen = [("near", near[:SHOWN]), ("far", judged.far[label][:SHOWN])]
        lines.append(
            [
                Tile(row, ((label, _INK), (f"{kind}   id {ids[row]}", _WARN if kind == "far" else _FAINT)))
                for kind, rows in chosen
                for row in rows.tolist()
            ]
        )
    _grid(given, lines).save(path)


def _grid(given: Labelled, lines: Sequence[Sequence[Tile]]) -> Image.Image:
    columns = max((len(line) for line in lines), default=1)
    below = max((len(tile.lines) for line in lines for tile in line), default=1) * LINE + 6
    size = GAP + columns * (MAP + GAP), GAP + max(len(lines), 1) * (MAP + below + GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    if not lines:
        pen.text((GAP, GAP), "no suspects", _FAINT, font)
    for down, line in enumerate(lines):
        for right, tile in enumerate(line):
            left, top = GAP + right * (MAP + GAP), GAP + down * (MAP + below + GAP)
            sheet.paste(Image.fromarray(render(given.rows.grid(tile.row), _SPEC)), (left, top))
            for place, (text, colour) in enumerate(tile.lines):
                pen.text((left, top + MAP + 4 + place * LINE), text, colour, font)
    return sheet
