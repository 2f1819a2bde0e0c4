"""Ranked suspects: which labels look wrong, what they are likely to be, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.cleaning.clusters import cluster_labels, feature_space, neighbour_labels, representatives
from train.cleaning.duplicates import Conflict, conflicts
from train.cleaning.groups import judged_together
from train.cleaning.probabilities import out_of_sample
from train.cleaning.suspicion import suspicion
from train.sources.rows import Rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A class of fewer maps is not judged: it is not seen by all folds.
LEAST_MAPS = 10
SUSPICIOUS = 0.5
FAR = 0.95
_ELSEWHERE = "its source says that the same map carries another label elsewhere; "


@dataclass(frozen=True, slots=True)
class Suspect:
    """A ``row`` whose label looks wrong: ``given`` and ``suggested`` label, ``score`` 0 to 1 (1 where the
    same map carries another label), ``reason``, and the probability of both labels as other lots have it."""

    row: int
    given: str
    suggested: str
    score: float
    reason: str
    given_probability: float
    suggested_probability: float


@dataclass(frozen=True, slots=True)
class Judged:
    """All that was found about N rows: ``suspects`` ranked, the ``conflicts``, rows that the source calls
    ``disputed`` and that are in no conflict, ``score`` (N,), ``near`` and ``far`` rows by label, and labels
    too ``rare`` to judge."""

    suspects: tuple[Suspect, ...]
    conflicts: tuple[Conflict, ...]
    disputed: tuple[int, ...]
    score: Floats
    near: dict[str, Ints]
    far: dict[str, Ints]
    rare: tuple[str, ...]


def judge(rows: Rows, geometry: Floats, vision: Floats, *, shown: int = 8, seed: int = 0) -> Judged:
    """Judge the labels of ``rows``, all labelled, by their features (N, G) and (N, V).

    ``shown`` is how many near-centre and far rows of each label are chosen. Raises DatasetError where all
    maps are of one lot.
    """
    names, labels = np.unique(rows.labels, return_inverse=True)
    labels = labels.astype(np.int64)
    groups = judged_together(rows)
    probabilities = out_of_sample(geometry, vision, labels, groups, seed)
    score, other = suspicion(probabilities, labels)
    rare = np.flatnonzero(np.bincount(labels) < LEAST_MAPS)
    score[np.isin(labels, rare)] = 0.0
    space = feature_space(geometry, vision, seed)
    clusters = cluster_labels(space, labels, seed)
    chosen = representatives(clusters, labels, shown)
    contradicted = tuple(conflicts(rows))
    first = _first(rows, contradicted, probabilities, names)
    paired = {row for conflict in contradicted for row in conflict.rows}
    disputed = [row for row in np.flatnonzero(rows.disputed).tolist() if row not in paired]
    doubted = np.union1d(np.flatnonzero(score > SUSPICIOUS), np.array(disputed, dtype=np.int64))
    doubted = np.setdiff1d(doubted, [s.row for s in first]).astype(np.int64)
    doubted = doubted[np.argsort(-score[doubted], kind="stable")]
    neighbours = neighbour_labels(space, labels, groups, doubted)
    rest = [
        Suspect(
            row,
            str(names[labels[row]]),
            str(names[other[row]]),
            float(score[row]),
            _ELSEWHERE * (row in disputed)
            + _reason(names, int(labels[row]), int(other[row]), near, float(clusters.farness[row])),
            float(probabilities[row, labels[row]]),
            float(probabilities[row, other[row]]),
        )
        for row, near in zip(doubted.tolist(), neighbours, strict=True)
    ]
    return Judged(
        suspects=(*first, *rest),
        conflicts=contradicted,
        disputed=tuple(disputed),
        score=score,
        near={str(names[label]): near for label, (near, _) in chosen.items()},
        far={str(names[label]): far for label, (_, far) in chosen.items()},
        rare=tuple(str(names[label]) for label in rare),
    )


def _first(
    rows: Rows, found: Sequence[Conflict], probabilities: Floats, names: NDArray[np.str_]
) -> list[Suspect]:
    """The rows of conflicts that do not carry the label of most, or, where there is no such label, not the
    likeliest of those given."""
    place = {str(name): i for i, name in enumerate(names)}
    suspects = []
    for conflict in found:
        mean = probabilities[list(conflict.rows)].mean(axis=0)
        right = conflict.majority or max(conflict.labels, key=lambda label: mean[place[label]])
        for row, given in zip(conflict.rows, conflict.labels, strict=True):
            if given != right:
                twin = conflict.rows[conflict.labels.index(right)]
                same = "the same map" if conflict.exact else "the same map, turned or mirrored,"
                why = f"{same} carries {right} as {rows.source_index[twin]}"
                pair = float(probabilities[row, place[given]]), float(probabilities[row, place[right]])
                suspects.append(Suspect(row, given, right, 1.0, why, *pair))
    return suspects


def _reason(names: NDArray[np.str_], given: int, suggested: int, near: Ints, farness: float) -> str:
    total = int(near.sum())
    parts = [f"other lots say {names[suggested]}"]
    if total:
        told = f"{int(near[suggested])} of the {total} likest maps carry {names[suggested]}"
        parts.append(f"{told} and {int(near[given])} {names[given]}")
    if farness >= FAR:
        parts.append(f"it is farther from the clusters of {names[given]} than {farness:.0%} of its maps")
    return "; ".join(parts)
