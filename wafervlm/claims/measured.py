"""What checks share: the structures that a claim can name, and how a finding is put."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wafervlm.claims.claim import CLUSTERS, MAIN, Verdict

if TYPE_CHECKING:
    from wafervlm.geometry.types import Cluster, Geometry, Line, Ring

Dies = NDArray[np.intp]

# Clusters of at least this part of the largest are those that a reader counts; smaller ones are specks.
COUNTED = 0.25
# As many clusters as a geometry lists: what is said of others cannot be told.
LISTED = 8
# These have no clock position: they go round the wafer, cover it, or are nothing.
PLACELESS = ("none", "scatter", "full", "ring", "annulus")


@dataclass(frozen=True, slots=True)
class Found:
    """A verdict on a claim as if it were not negated, the sentence that says why, and the evidence."""

    verdict: Verdict
    why: str
    dies: Dies | None = None


def judged(holds: bool, why: str, dies: Dies | None = None) -> Found:
    """Supported where it ``holds``, otherwise contradicted."""
    return Found(Verdict.SUPPORTED if holds else Verdict.CONTRADICTED, why, dies)


def untold(why: str) -> Found:
    """What the dies cannot decide."""
    return Found(Verdict.UNTOLD, why)


def counted_clusters(geometry: Geometry) -> tuple[Cluster, ...]:
    """The clusters that a reader counts."""
    clusters = geometry.clusters
    return tuple(c for c in clusters if c.size >= COUNTED * clusters[0].size)


def named(subject: str | None, geometry: Geometry) -> list[Cluster | Line | Ring]:
    """The structures that a claim may be about: one, or for ``cluster`` and ``line`` any of them."""
    if subject in MAIN:
        return [geometry.main] if geometry.main is not None else []
    if subject in CLUSTERS:
        at = CLUSTERS.index(subject)
        return [*geometry.clusters[at : at + 1]]
    if subject == "cluster":
        return [*counted_clusters(geometry)]
    return [*(geometry.lines if subject == "line" else geometry.ring_list)]


def missing(subject: str | None, geometry: Geometry) -> Found:
    """The finding where ``named`` gives none."""
    if subject in CLUSTERS[1:] and len(geometry.clusters) >= LISTED:
        return untold(f"more than {LISTED} clusters are not listed")
    if subject in CLUSTERS or subject == "cluster":
        return judged(False, f"{count(len(geometry.clusters), 'cluster')} found")
    what = "structure" if subject in MAIN else subject
    return judged(False, f"no {what} is found")


def joined(parts: list[Dies]) -> Dies | None:
    """The dies of several structures; None where there are none."""
    return np.concatenate(parts) if parts else None


def count(n: int, noun: str) -> str:
    """ "no cluster", "1 cluster", "2 clusters", with a verb to follow."""
    return f"{n or 'no'} {noun}{'s are' if n > 1 else ' is'}"


def percent(share: float) -> str:
    """A share in percent, a decimal where it is small."""
    return f"{100 * share:.1f} percent" if 100 * share < 9.95 else f"{100 * share:.0f} percent"


def hours_apart(a: int, b: int) -> int:
    """Between two clock positions, 0 to 6."""
    return min((a - b) % 12, (b - a) % 12)
