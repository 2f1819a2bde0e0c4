"""WM-811K as .npz: die grids of any shape in one flat array (maps, offsets, heights, widths, labels)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from train.sources.rows import Rows, texts
from wafervlm.errors import FileFormatError
from wafervlm.wafermap import FAIL, canonical_digest, grid_digest

NEEDED = ("maps", "offsets", "heights", "widths", "labels")


def read_npz(path: Path) -> Rows:
    """Read a .npz with maps (1-D uint8, concatenated row-major), offsets (N+1), heights, widths and labels;
    source_index, lot_name, map_sha256_24, canon_sha256_24, dup_label_conflict and ordered are taken where
    present.

    The digests that the file states are checked against its maps' first and last rows only; all are
    computed where it states none. Raises FileFormatError where the arrays do not fit together.
    """
    path = Path(path)
    arrays = load_arrays(path, NEEDED)
    offsets = arrays["offsets"].astype(np.int64)
    heights, widths = arrays["heights"].astype(np.int64), arrays["widths"].astype(np.int64)
    count = len(heights)
    _check_layout(path, arrays["maps"], offsets, heights, widths, len(arrays["labels"]))
    rows = Rows(
        dies=arrays["maps"],
        starts=offsets[:-1],
        heights=heights,
        widths=widths,
        labels=arrays["labels"].astype(np.str_),
        source_index=arrays.get("source_index", np.arange(count)).astype(np.int64),
        lots=arrays.get("lot_name", np.full(count, "")).astype(np.str_),
        part=np.full(count, "", dtype=np.str_),
        digests=arrays.get("map_sha256_24", np.full(count, "")).astype(np.str_),
        canonical=arrays.get("canon_sha256_24", np.full(count, "")).astype(np.str_),
        disputed=arrays.get("dup_label_conflict", np.zeros(count)).astype(bool),
        ordered=bool(np.all(arrays.get("ordered", True))),
    )
    return with_digests(rows, path)


# What numpy raises where a file is none, is cut or spoiled, or holds objects; of a lone array, which it reads
# too, that it is no archive.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)


def load_arrays(path: Path, needed: tuple[str, ...]) -> dict[str, Any]:
    """All arrays of a .npz, never unpickling. Raises FileFormatError where one of ``needed`` is missing."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except _UNREADABLE as error:
        raise FileFormatError(f"{path} is not a .npz of plain arrays: {error}") from None
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise FileFormatError(f"{path} has no array {missing[0]!r}; it needs {', '.join(needed)}")
    return arrays


def with_digests(rows: Rows, path: Path) -> Rows:
    """``rows`` with the digests that are missing computed, and one stated digest in 97 checked."""
    from dataclasses import replace

    if (rows.digests == "").any():
        rows = replace(rows, digests=texts(grid_digest(rows.grid(i)) for i in range(len(rows))))
    for i in range(0, len(rows), 97):
        if rows.digests[i] != grid_digest(rows.grid(i)):
            raise FileFormatError(
                f"{path}: row {i} does not have the digest {rows.digests[i]} that the file states"
            )
    if (rows.canonical == "").any():
        rows = replace(rows, canonical=texts(canonical_digest(rows.grid(i)) for i in range(len(rows))))
    return rows


def _check_layout(path: Path, dies: Any, offsets: Any, heights: Any, widths: Any, labels: int) -> None:
    count = len(heights)
    if dies.dtype != np.uint8 or dies.ndim != 1 or (dies.size and int(dies.max()) > FAIL):
        raise FileFormatError(f"{path}: maps must be 1-D uint8 of 0 no die, 1 pass, 2 fail")
    fits = len(offsets) == count + 1 and len(widths) == count and labels == count
    if not fits or not np.array_equal(np.diff(offsets), heights * widths) or int(offsets[-1]) != dies.size:
        raise FileFormatError(f"{path}: offsets, heights, widths, labels and maps do not fit together")
    if count and (int(offsets[0]) != 0 or int(heights.min()) < 1 or int(widths.min()) < 1):
        raise FileFormatError(f"{path}: the first map does not begin at 0, or a map has no rows or columns")
