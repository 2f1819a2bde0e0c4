"""Maps that are there twice, turned or mirrored copies too, and carry different labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.sources.rows import Rows


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rows that show the same map and do not agree on its label; ``exact`` where none is turned."""

    rows: tuple[int, ...]
    labels: tuple[str, ...]
    exact: bool

    @property
    def majority(self) -> str | None:
        """The label that most of the rows carry, None where that is not one label."""
        names, counts = np.unique(self.labels, return_counts=True)
        best = names[counts == counts.max()]
        return str(best[0]) if len(best) == 1 else None


def conflicts(rows: Rows) -> list[Conflict]:
    """All groups of labelled rows of equal ``canonical`` digest with more than one label, in source order."""
    labelled = np.flatnonzero(rows.labels != "")
    members: dict[str, list[int]] = {}
    for row in labelled.tolist():
        members.setdefault(str(rows.canonical[row]), []).append(row)
    found = []
    for group in members.values():
        labels = tuple(str(rows.labels[row]) for row in group)
        if len(set(labels)) > 1:
            found.append(Conflict(tuple(group), labels, len(set(rows.digests[group].tolist())) == 1))
    return found
