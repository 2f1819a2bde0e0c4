"""Claim: what a text says of the dies of a wafer, and what became of it when it was checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = str | int | float | tuple[Any, ...]
# What a claim is about: its kind, the structure it names, and whether it is denied.
Topic = tuple[str, str | None, bool]

SPATIAL = ("share", "count", "zone", "clear", "clock", "span", "quadrant", "side")
MORPHOLOGY = (
    *("pattern", "ring", "line", "clusters", "size", "extent", "density", "scatter", "background"),
    *("repeat", "symmetry"),
)
KINDS = (*SPATIAL, *MORPHOLOGY)

# Structures that a claim about a place can be about; without one it is about the dominating structure, a zone
# about the failing dies.
CLUSTERS = ("largest cluster", "second cluster", "third cluster")
SUBJECTS = (*CLUSTERS, "cluster", "line", "ring", "gap", "pattern")
# Of the whole wafer: without a structure, or with the dominating one.
MAIN = (None, "pattern")


class Verdict(Enum):
    """What the dies say of a claim."""

    SUPPORTED = "supported"
    CONTRADICTED = "contradicted"
    UNTOLD = "cannot be told"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim. ``text`` is the phrase that makes it and ``start``, ``end`` its span in the text that it was
    found in; two claims are equal where they claim the same, wherever they stand.

    A value of a place or a figure may name its structure, as ``("second cluster", 5)``: one of ``SUBJECTS``,
    where ``cluster`` is any of the larger ones; without a name it is that of the dominating structure. A zone
    without a name is that in which failing dies mostly lie; ("pattern", "edge") is that of the structure.

    | kind       | values                                                                       |
    |------------|------------------------------------------------------------------------------|
    | share      | percent of the dies that fail; ("edge", percent) within a zone;              |
    |            | ("above" or "below", percent)                                                |
    | count      | failing dies on the wafer                                                    |
    | zone       | center, middle, edge                                                         |
    | clear      | the zone in which hardly any die fails                                       |
    | clock      | hour 1 to 12                                                                 |
    | span       | (first hour, last hour), clockwise                                           |
    | quadrant   | upper left, upper right, lower left, lower right                             |
    | side       | top, right, bottom, left                                                     |
    | pattern    | any: a pattern stands out (negated: none does)                               |
    | ring       | any, closed, open, arc; (form, radius in percent of the wafer's)             |
    | line       | any, horizontal, vertical, rising, falling, diagonal, straight, curved       |
    | clusters   | 0, 1, 2, 3 (three or more); any (at least one), several (at least two)       |
    | size       | dies of the largest cluster                                                  |
    | extent     | length in percent of the wafer's diameter                                    |
    | density    | dense, sparse                                                                |
    | scatter    | alone (failing dies stand alone), spread (over the whole wafer)              |
    | background | few, some, many failing dies outside of all structures                       |
    | repeat     | any; (rows, columns), 0 for none along that axis                             |
    | symmetry   | any, rotational, mirror                                                      |
    """

    kind: str
    value: Value
    text: str = field(default="", compare=False)
    start: int = field(default=0, compare=False)
    end: int = field(default=0, compare=False)
    negated: bool = False

    @property
    def subject(self) -> str | None:
        """The structure that the claim names, None for the dominating one, of a zone for the failing dies."""
        named = isinstance(self.value, tuple) and self.value[0] in SUBJECTS
        return str(self.value[0]) if named and isinstance(self.value, tuple) else None

    @property
    def plain(self) -> Any:
        """The value without the structure it names."""
        if self.subject is None or not isinstance(self.value, tuple):
            return self.value
        return self.value[1] if len(self.value) == 2 else self.value[1:]

    @property
    def topic(self) -> Topic:
        """What it is about: kind, structure, and whether it is denied. The structure is None for the
        dominating one and the failing dies alike, whichever way a main place is told."""
        return self.kind, None if self.subject in MAIN else self.subject, self.negated

    @property
    def dimension(self) -> str:
        """The part of a description it belongs to: spatial or morphology."""
        return "spatial" if self.kind in SPATIAL else "morphology"


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """A claim and its verdict. ``why`` is a sentence with what was measured; ``dies`` (N, 2) intp, row and
    column, are those that bear it out, None where no dies do."""

    claim: Claim
    verdict: Verdict
    why: str
    dies: NDArray[np.intp] | None = None

    @property
    def supported(self) -> bool:
        """Whether the dies bear it out."""
        return self.verdict is Verdict.SUPPORTED

    @property
    def contradicted(self) -> bool:
        """Whether the dies say otherwise."""
        return self.verdict is Verdict.CONTRADICTED
