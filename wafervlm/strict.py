"""Reading JSON that somebody else wrote: every key known, every value of its kind and in its range."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from wafervlm.errors import ManifestError

MAX_MANIFEST_BYTES = 4 << 20


def read_json(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"{where} is larger than {MAX_MANIFEST_BYTES >> 20} MiB, which no manifest is")
    try:
        values = json.loads(
            data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is not valid JSON: {error}; copy it again, or make it anew") from None
    if not isinstance(values, dict):
        raise ManifestError(f"{where} must hold one JSON object")
    return values


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return values


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def is_kind(value: object, kind: type) -> bool:
    """Whether a JSON value is of ``kind``: a whole number is a float too, true and infinity are none."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def check_table(values: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    for key in values:
        if key not in kinds:
            raise ManifestError(f"{where} has the unknown key {key!r}; known are {', '.join(kinds)}")
    for key, kind in kinds.items():
        if key not in values:
            raise ManifestError(f"{where} lacks the key {key!r}")
        if not is_kind(values[key], kind):
            raise ManifestError(
                f"{key} in {where} must be {_KIND_NAMES[kind]}, not {type(values[key]).__name__} "
                f"({str(values[key])[:40]!r})"
            )


_KIND_NAMES = {int: "a whole number", float: "a finite number", str: "text", list: "a list", dict: "a table"}


def check_items(values: list[Any], kind: type, what: str) -> None:
    for value in values:
        if not is_kind(value, kind):
            raise ManifestError(
                f"{what} must hold only items that are {_KIND_NAMES[kind]}, not {str(value)[:40]!r}"
            )


def check_range(good: bool, key: str, value: object, should: str, where: str) -> None:
    if not good:
        raise ManifestError(f"{key} in {where} is {value!r}; it must be {should}")
