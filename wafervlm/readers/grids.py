"""Die grids written as text: one line a row, the codes separated or one character each."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from wafervlm.errors import FileFormatError
from wafervlm.readers.bins import Bins, unmapped
from wafervlm.readers.files import read_bytes
from wafervlm.wafermap import MAX_SIDE, DieGrid

_SEPARATORS = (",", ";", "\t")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LINE_END = re.compile(r"\r\n|\n|\r")


def read_grid(path: Path, bins: Mapping[str, int] | None = None) -> DieGrid:
    """Return the die grid (H, W) uint8 of a text file (UTF-8, or UTF-16 with its mark).

    Codes are separated by commas, semicolons, tabs or spaces, whichever is found first in this order
    and is no code itself; without any, each character is a code. ``bins`` says what the codes mean,
    "0", "1" and "2" mean themselves without it. Blank lines are left out, and lines that begin with #
    where # is no code. Raises FileFormatError.
    """
    table = Bins(bins)
    lines = _lines(path, table)
    separator = _separator([line for _, line in lines], table)
    rows: list[bytes] = []
    for number, line in lines:
        cells = _cells(line, separator)
        if rows and len(cells) != len(rows[0]):
            raise FileFormatError(
                f"{path} has {len(cells)} codes in line {number} and {len(rows[0])} in the lines before; "
                "every row of the grid needs as many"
            )
        if max(len(cells), len(rows) + 1) > MAX_SIDE:
            raise FileFormatError(f"{path} has more than {MAX_SIDE} rows or columns")
        rows.append(_row(cells, table, path, len(rows) + 1, number))
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1)


def _lines(path: Path, table: Bins) -> list[tuple[int, str]]:
    """The lines that are rows of the grid, each with its number in the file."""
    data = read_bytes(path)
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not UTF-8 text; a CSV or ASCII grid was expected") from None
    comment = not any(code.startswith("#") for code in table)
    blank = " " not in table
    lines = [
        (number, line)
        for number, line in enumerate(_LINE_END.split(text), 1)
        if (line.strip() if blank else line) and not (comment and line.lstrip().startswith("#"))
    ]
    if not lines:
        raise FileFormatError(f"{path} holds no rows")
    return lines


def _separator(lines: list[str], table: Bins) -> str | None:
    """The separator, " " for any run of white space, None for one character a code."""
    for separator in _SEPARATORS:
        if separator not in table and any(separator in line for line in lines):
            return separator
    spaced = " " not in table and any(" " in line.strip() for line in lines)
    return " " if spaced else None


def _cells(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return list(line)
    if separator == " ":
        return line.split()
    quoted = '"' in line
    cells = next(csv.reader([line], delimiter=separator)) if quoted else line.split(separator)
    return [cell.strip() for cell in cells]


def _row(cells: list[str], table: Bins, path: Path, row: int, line: int) -> bytes:
    try:
        return bytes([table[cell] for cell in cells])
    except KeyError as error:
        code = error.args[0]
        place = f"row {row}, column {cells.index(code) + 1} (counted from 1; line {line} of the file)"
        raise unmapped(code, f"{path}, {place},") from None
