"""Bin codes: what a tester wrote for each die, and which of no die, pass and fail it means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import FileFormatError, UsageError
from wafervlm.wafermap import FAIL, MAP_CODES, NO_DIE, PASS, DieGrid

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


class Bins(dict[str, int]):
    """Die values 0, 1 and 2 by bin code; a code that is not mapped is a KeyError.

    ``Bins(None)`` maps "0", "1" and "2" to themselves. Codes are text or whole numbers. A number that
    is not mapped as it is written is looked up as a whole number: "1.0" and "01" as "1". Raises
    UsageError for a mapping that cannot be meant.
    """

    def __init__(self, bins: Mapping[Any, int] | None) -> None:
        if bins is None:
            bins = {"0": NO_DIE, "1": PASS, "2": FAIL}
        if not isinstance(bins, Mapping) or not bins:
            raise UsageError(f"bins is {bins!r}; it must map codes to dies, as in {{'.': 0, '1': 1, 'X': 2}}")
        for code, die in bins.items():
            if isinstance(code, bool) or not isinstance(code, (str, int)):
                raise UsageError(f"bins has the code {code!r}; a code must be text or a whole number")
            if isinstance(die, bool) or die not in (NO_DIE, PASS, FAIL):
                raise UsageError(f"bins maps {code!r} to {die!r}; it must be 0 no die, 1 pass or 2 fail")
        super().__init__((str(code), int(die)) for code, die in bins.items())

    def __missing__(self, code: str) -> int:
        if not _NUMBER.fullmatch(code):
            raise KeyError(code)
        number = float(code)
        whole = str(int(number)) if number.is_integer() else code
        if whole == code or whole not in self:
            raise KeyError(code)
        self[code] = self[whole]
        return self[code]


def unmapped(code: str, where: str) -> FileFormatError:
    """The error for a code that is not mapped; ``where`` is its file and place in it."""
    name = repr(code) if code else "'' (an empty cell)"
    return FileFormatError(f"{where} has the code {name}, which is not mapped; {MAP_CODES}")


def map_bins(codes: NDArray[Any], bins: Mapping[Any, int], where: str) -> DieGrid:
    """Return the die grid of (H, W) numeric ``codes``. Raises FileFormatError for a code not mapped."""
    table = Bins(bins)
    if codes.dtype.kind not in "iuf":
        raise FileFormatError(f"{where} has dtype {codes.dtype}; bin codes in an array must be numbers")
    dies = np.empty(codes.shape, dtype=np.uint8)
    for value in np.unique(codes):
        # NaN differs from itself, and is never mapped.
        places = codes == value if value == value else np.isnan(codes)
        try:
            dies[places] = table[_text(value)]
        except KeyError:
            row, column = np.argwhere(places)[0]
            raise unmapped(_text(value), f"{where}, row {row}, column {column},") from None
    return dies


def _text(value: Any) -> str:
    return str(int(value)) if np.isfinite(value) and value == int(value) else str(value.item())
