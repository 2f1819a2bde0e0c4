"""Split files: which rows of a public file are in which part, by row index and map digest.

Anyone with the public file rebuilds a split from its record: rows are found by their index where the map
there has the digest that the record states, and by that digest otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from train.sources.rows import Ints, Rows, Texts
from wafervlm.errors import DatasetError, FileFormatError, SchemaVersionError

PARTS = ("train", "tune", "test")
SCHEMA_VERSION = 1
SPLITS_FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "splits"
_SHORT = 12


@dataclass(frozen=True)
class Split:
    """Which rows are in which part: ``rows`` maps "train", "tune" and "test" to ascending source_index;
    ``maps`` to the first 12 hex digits of each row's map digest; ``digests`` to the sha256 over the 24
    hex digits of each, one a line. ``counts`` are per part and class, ``dropped`` says what is in no part."""

    name: str
    about: str
    rows: Mapping[str, Ints]
    maps: Mapping[str, tuple[str, ...]]
    digests: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)


def describe_split(
    rows: Rows,
    parts: Mapping[str, Ints],
    *,
    name: str,
    about: str,
    settings: Mapping[str, Any],
    dropped: Mapping[str, int] | None = None,
) -> Split:
    """The record of a split of ``rows`` into ``parts`` of positions."""
    taken = {part: rows.take(places) for part, places in parts.items()}
    taken = {part: some.take(np.argsort(some.source_index, kind="stable")) for part, some in taken.items()}
    return Split(
        name=name,
        about=about,
        rows={part: some.source_index for part, some in taken.items()},
        maps={part: tuple(str(d)[:_SHORT] for d in some.digests) for part, some in taken.items()},
        digests={part: _over(some.digests) for part, some in taken.items()},
        settings=dict(settings),
        counts={part: some.class_counts() for part, some in taken.items()},
        dropped=dict(dropped or {}),
    )


def write_split(split: Split, path: Path) -> None:
    """Write ``split`` as JSON: rows as ranges, map digests shortened to 12 hex digits and joined."""
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": split.name,
        "about": split.about,
        "settings": dict(split.settings),
        "dropped": dict(split.dropped),
        "parts": {
            part: {
                "count": len(split.rows[part]),
                "classes": dict(split.counts.get(part, {})),
                "digest": split.digests[part],
                "rows": _ranges(split.rows[part]),
                "maps": "".join(split.maps[part]),
            }
            for part in split.rows
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}.writing")
    work.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    work.replace(path)


def read_split_file(path: Path) -> Split:
    """Read what ``write_split`` wrote. Raises FileFormatError where it is not that, SchemaVersionError where
    a newer version wrote it."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{path} has schema version {record['schema_version']}; this version reads {SCHEMA_VERSION}"
            )
        parts = record["parts"]
        split = Split(
            name=record["name"],
            about=record["about"],
            rows={part: _from_ranges(values["rows"]) for part, values in parts.items()},
            maps={part: _cut(values["maps"]) for part, values in parts.items()},
            digests={part: values["digest"] for part, values in parts.items()},
            settings=record["settings"],
            counts={part: values["classes"] for part, values in parts.items()},
            dropped=record["dropped"],
        )
        counts = {part: values["count"] for part, values in parts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(f"{path} is not a split file: {type(error).__name__} {error}") from None
    for part, count in counts.items():
        if not len(split.rows[part]) == len(split.maps[part]) == count:
            raise FileFormatError(f"{path}: part {part!r} does not have the {count} rows it states")
    return split


def load_split(name: str | Path) -> dict[str, Ints]:
    """The parts of a committed split, by name ("wm811k_pool") or path: part to ascending source_index."""
    return dict(read_split_file(split_path(name)).rows)


def split_path(name: str | Path) -> Path:
    """Where the committed split ``name`` lies; a path to a file is returned as it is."""
    path = Path(name)
    if path.is_file():
        return path
    found = SPLITS_FOLDER / f"{name}.json"
    if not found.is_file():
        known = ", ".join(sorted(p.stem for p in SPLITS_FOLDER.glob("*.json"))) or "none"
        raise DatasetError(f"there is no split {str(name)!r}; committed are: {known}")
    return found


def apply_split(rows: Rows, split: Split) -> dict[str, Ints]:
    """Positions in ``rows`` (N,) int64 of each part of ``split``, in its order.

    Where every row that the source has shows the map that the split states for its index, rows are taken by
    index, and those that the source does not have are left out: a split of a file serves a smaller file too.
    Otherwise the source numbers its rows in another way and all are found by map. Raises DatasetError where
    that fails: the source is then not the file that the split was made from.
    """
    found = _by_index(rows, split)
    if found is None:
        found = _by_map(rows, split)
    if not any(len(places) for places in found.values()):
        raise DatasetError(f"the source has none of the rows of split {split.name!r}")
    for part, places in found.items():
        if len(places) == len(split.rows[part]) and _over(rows.digests[places]) != split.digests[part]:
            raise DatasetError(
                f"the maps of part {part!r} are not those that split {split.name!r} was made from"
            )
    return found


def _by_index(rows: Rows, split: Split) -> dict[str, Ints] | None:
    place = {int(index): i for i, index in enumerate(rows.source_index)}
    found: dict[str, Ints] = {}
    for part, indices in split.rows.items():
        pairs = [
            (place.get(index), short) for index, short in zip(indices.tolist(), split.maps[part], strict=True)
        ]
        there = [(i, short) for i, short in pairs if i is not None]
        if any(not str(rows.digests[i]).startswith(short) for i, short in there):
            return None
        found[part] = np.array([i for i, _ in there], dtype=np.int64)
    return found


def _by_map(rows: Rows, split: Split) -> dict[str, Ints]:
    places = defaultdict(list)
    for i in range(len(rows) - 1, -1, -1):
        places[str(rows.digests[i])[:_SHORT]].append(i)
    found: dict[str, Ints] = {}
    for part, shorts in split.maps.items():
        missing = next((short for short in shorts if not places[short]), None)
        if missing is not None:
            raise DatasetError(
                f"map {missing}... of part {part!r} is not in the source; split {split.name!r} was made from "
                "another file"
            )
        # Each of several equal maps is given out once, in file order.
        found[part] = np.array([places[short].pop() for short in shorts], dtype=np.int64)
    return found


def _over(digests: Texts) -> str:
    return hashlib.sha256("\n".join(str(d) for d in digests).encode()).hexdigest()


def _ranges(values: Ints) -> str:
    if not len(values):
        return ""
    ends = np.flatnonzero(np.diff(values) != 1)
    firsts, lasts = values[np.r_[0, ends + 1]], values[np.r_[ends, len(values) - 1]]
    return " ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in zip(firsts, lasts, strict=True))


def _from_ranges(text: str) -> Ints:
    pairs = [(part.split("-")[0], part.split("-")[-1]) for part in text.split()]
    pieces = [np.arange(int(a), int(b) + 1, dtype=np.int64) for a, b in pairs]
    return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)


def _cut(joined: str) -> tuple[str, ...]:
    return tuple(joined[i : i + _SHORT] for i in range(0, len(joined), _SHORT))
