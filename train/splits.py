"""Splits that share no lot and no map.

WM-811K's rows are in lot order and a lot spans at most 24 of them, but many rows do not say their lot. So
whole blocks of rows are held out, and rows of the rest within ``MARGIN`` of a held-out row are dropped. Time
shifts the distribution far more than lot identity does, so the blocks are spread over the whole order, one
from each stretch. Where a source is in no order, lots are held out where they are known, and single maps
where they are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from train.sources.rows import Bools, Ints, Rows, Texts
from train.split_files import (
    Split,
    apply_split,
    describe_split,
    load_split,
    read_split_file,
    split_path,
    write_split,
)
from wafervlm.errors import DatasetError, LeakError, WaferVLMWarning

__all__ = [
    "MARGIN",
    "Split",
    "apply_split",
    "check_apart",
    "hold_out",
    "load_split",
    "lot_blocks",
    "near",
    "read_split_file",
    "split_path",
    "split_rows",
    "write_split",
]

MARGIN = 25
BLOCK_ROWS = 500
TRIES = 5000
TEST_SHARE = 0.2
TUNE_SHARE = 0.08


def lot_blocks(source_index: Ints, lots: Texts | None = None, *, size: int = BLOCK_ROWS) -> Ints:
    """The block number of each row (N,) int64, ascending in lot order.

    A gap of ``MARGIN`` or more in ``source_index`` ends a block, and a longer run is cut every ``size`` rows
    of the source, where all ``lots`` are known between lots only.
    """
    if not len(source_index):
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(source_index, kind="stable")
    place = source_index[order]
    begins = np.concatenate([[True], np.diff(place) >= MARGIN])
    run = np.cumsum(begins) - 1
    cut = (place - place[begins][run]) // size
    if lots is not None and (lots != "").all():
        names = lots[order]
        first = np.concatenate([[True], (names[1:] != names[:-1]) | begins[1:]])
        cut = cut[first][np.cumsum(first) - 1]
    numbers = np.empty(len(place), dtype=np.int64)
    numbers[order] = np.unique(np.stack([run, cut], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def hold_out(rows: Rows, *, share: float, seed: int = 0) -> tuple[Bools, Bools]:
    """Hold out about ``share`` of the lots: (held, kept), two masks (N,) that share no lot.

    One block in each 1/share consecutive blocks is drawn; of ``TRIES`` draws the one whose mix of classes is
    nearest to the whole is taken, so that a rare class is not lost by chance. Rows of the rest that may be
    of a held lot are in neither mask. Raises DatasetError where there are too few blocks.
    """
    blocks = _blocks(rows)
    count = int(blocks.max(initial=-1)) + 1
    if not 0 < share < 1 or round(count * share) < 1:
        raise DatasetError(
            f"cannot hold out a share of {share:g} of {len(rows)} maps in {count} blocks; give more maps"
        )
    generator = np.random.default_rng(seed)
    draws = [_draw(count, share, generator) for _ in range(TRIES)]
    held = np.isin(blocks, _nearest_mix(draws, blocks, rows.labels, share))
    return held, ~held & ~may_share_lot(rows, rows.take(held))


def may_share_lot(rows: Rows, others: Rows) -> Bools:
    """Which of ``rows`` (N,) may be of a lot that ``others`` have: the same known lot, or, where either lot
    is unknown and the source is in lot order, less than ``MARGIN`` rows away."""
    same = np.isin(rows.lots, np.setdiff1d(others.lots, [""]))
    if not rows.ordered:
        return np.asarray(same)
    close = near(rows.source_index, others.source_index[others.lots == ""])
    close |= (rows.lots == "") & near(rows.source_index, others.source_index)
    return np.asarray(same | close)


def near(source_index: Ints, others: Ints) -> Bools:
    """Which of ``source_index`` (N,) lie less than ``MARGIN`` rows from one of ``others``."""
    if not len(others):
        return np.zeros(len(source_index), dtype=bool)
    others = np.sort(others)
    place = np.searchsorted(others, source_index)
    before = others[np.maximum(place - 1, 0)]
    after = others[np.minimum(place, len(others) - 1)]
    return np.asarray(np.minimum(np.abs(source_index - before), np.abs(source_index - after)) < MARGIN)


def split_rows(
    rows: Rows,
    *,
    name: str,
    about: str,
    seed: int = 0,
    apart_from: Rows | None = None,
    test_share: float = TEST_SHARE,
    tune_share: float = TUNE_SHARE,
) -> Split:
    """Split labelled ``rows``: ``test_share`` of the lots to test, ``tune_share`` of the rest to tune, the
    others to train.

    A map that is in test, rotated or mirrored too, is dropped from tune and train, one in tune from train;
    maps of ``apart_from`` and rows of its lots are dropped everywhere. Where one map carries two labels, its
    rows are dropped from train and tune and stay in test, as they would come. Raises DatasetError.
    """
    usable = rows.labels != ""
    if apart_from is not None:
        usable &= ~np.isin(rows.canonical, apart_from.canonical) & ~may_share_lot(rows, apart_from)
    if not rows.ordered and (rows.lots == "").any():
        warnings.warn(
            "the source does not say the lots of all its maps; only equal maps are kept apart",
            WaferVLMWarning,
            2,
        )
    test, rest = _held(rows, usable, test_share, seed)
    tune, train = _held(rows, rest & ~rows.conflicting(), tune_share, seed + 1)
    tune &= ~np.isin(rows.canonical, rows.canonical[test])
    train &= ~np.isin(rows.canonical, rows.canonical[test | tune])
    parts = {part: np.flatnonzero(mask) for part, mask in (("train", train), ("tune", tune), ("test", test))}
    check_apart({part: rows.take(places) for part, places in parts.items()})
    dropped = {
        "unlabelled, or to stay apart from": int((~usable).sum()),
        "conflicting labels, or a lot or map of another part": int((usable & ~(train | tune | test)).sum()),
    }
    settings = {
        "seed": seed,
        "test_share": test_share,
        "tune_share": tune_share,
        "margin": MARGIN,
        "block_rows": BLOCK_ROWS,
    }
    return describe_split(rows, parts, name=name, about=about, settings=settings, dropped=dropped)


def check_apart(parts: Mapping[str, Rows]) -> None:
    """Raise LeakError, naming the lot or the map and the two parts, where any two parts share one.

    Parts share a lot where ``may_share_lot`` says so, and a map where the digest of the smallest of its eight
    rotations and mirrors is in both.
    """
    names = list(parts)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            _check_pair(parts[first], parts[second], f"{first} and {second}")


def _check_pair(one: Rows, other: Rows, which: str) -> None:
    lots = sorted((set(one.lots.tolist()) & set(other.lots.tolist())) - {""})
    if lots:
        raise LeakError(f"lot {lots[0]} is in both {which}; split whole lots")
    same = np.flatnonzero(np.isin(one.canonical, other.canonical))
    if len(same):
        row = int(same[0])
        raise LeakError(
            f"map {one.digests[row]} (row {one.source_index[row]}) is in both {which}, "
            "possibly rotated or mirrored; drop it from one"
        )
    close = np.flatnonzero(may_share_lot(one, other))
    if len(close):
        raise LeakError(
            f"row {one.source_index[close[0]]} lies within a lot's reach, {MARGIN} rows, of the other part "
            f"of {which}; hold out whole blocks of lot order"
        )


def _blocks(rows: Rows) -> Ints:
    if rows.ordered and len(rows):
        span = int(rows.source_index.max() - rows.source_index.min()) + 1
        least = 1 if (rows.lots != "").all() else MARGIN
        size = min(BLOCK_ROWS, max(least, span // 40))
        return lot_blocks(rows.source_index, rows.lots, size=size)
    names = np.where(rows.lots != "", np.char.add("lot ", rows.lots), rows.canonical)
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _held(rows: Rows, usable: Bools, share: float, seed: int) -> tuple[Bools, Bools]:
    where = np.flatnonzero(usable)
    held, kept = hold_out(rows.take(where), share=share, seed=seed)
    masks = np.zeros((2, len(rows)), dtype=bool)
    masks[0, where[held]], masks[1, where[kept]] = True, True
    return masks[0], masks[1]


def _draw(count: int, share: float, generator: np.random.Generator) -> Ints:
    stretches = max(1, round(count * share))
    edges = np.linspace(0, count, stretches + 1).round().astype(np.int64)
    return np.array([generator.integers(a, b) for a, b in pairwise(edges)], dtype=np.int64)


def _nearest_mix(draws: list[Ints], blocks: Ints, labels: Texts, share: float) -> Ints:
    """The draw that leaves out the fewest classes and, of those, has the least chi-square distance of its
    class counts from ``share`` of each class."""
    names, label = np.unique(labels, return_inverse=True)
    counts = np.zeros((int(blocks.max()) + 1, len(names)))
    np.add.at(counts, (blocks, label), 1)
    wanted = counts.sum(axis=0) * share

    def distance(draw: Ints) -> tuple[int, float]:
        found = counts[draw].sum(axis=0)
        return int((found == 0).sum()), float(((found - wanted) ** 2 / wanted).sum())

    return min(draws, key=distance)
