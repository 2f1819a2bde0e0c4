"""Statements that do not hang on a few dies.

Whether there are one or two clusters, or whether a cluster is a line, may turn on a single die. A picture
does not tell such a die, and a model that is taught such statements learns to guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from wafervlm.claims import Claim, check
from wafervlm.claims.claim import MAIN
from wafervlm.geometry import measure
from wafervlm.wafermap import FAIL, PASS, DieGrid

# Times that the dies are altered; of the failing dies so many pass instead, and so many others fail.
TRIALS, DROPPED, ADDED = 3, 0.1, 0.04
# Figures, which the change itself moves: how near one must be is the check's to say.
FIGURES = frozenset({"share", "count", "size", "extent"})
# What a description is first asked for is said as well as it is known.
ASKED_FIRST = frozenset({"zone", "clock"})
_SEED = 5


def steady(claims: Sequence[Claim], dies: DieGrid) -> tuple[Claim, ...]:
    """Those of ``claims`` that ``dies`` (H, W) uint8 still bear out when some of them change at random, with
    all figures and main places, in the same order; of the others what ``plainly`` leaves, where that is
    borne out. The same dies always change in the same way. Of claims about the shape the first stays where
    none would."""
    wanted = dict.fromkeys([*claims, *(plain for claim in claims if (plain := plainly(claim)) is not None)])
    hanging: set[Claim] = set()
    for altered in _altered(dies):
        tried = [claim for claim in wanted if not _stays(claim) and claim not in hanging]
        hanging |= {item.claim for item in check(tried, measure(altered)) if not item.supported}
    told = [claim if claim not in hanging else plainly(claim) for claim in claims]
    kept = tuple(dict.fromkeys(claim for claim in told if claim is not None and claim not in hanging))
    if any(_shapes(claim) for claim in kept):
        return kept
    first = next((claim for claim in claims if _shapes(claim)), None)
    return tuple(claim for claim in claims if claim in kept or claim is first)


def plainly(claim: Claim) -> Claim | None:
    """``claim`` without what a picture does not tell: how many clusters there are, or that there is none, a
    ring's radius to a twentieth, that a line does not bend. The claim itself where there is no such thing."""
    if claim.kind == "ring" and isinstance(claim.value, tuple):
        return replace(claim, value=claim.value[0])
    if claim.kind == "line" and claim.value == "straight":
        return replace(claim, value="any")
    if claim.kind == "clusters":
        return replace(claim, value="any") if claim.value else None
    return claim


def _shapes(claim: Claim) -> bool:
    return claim.dimension == "morphology" and claim.kind not in FIGURES


def asked_first(claim: Claim) -> bool:
    """Whether it is the main zone or clock position."""
    return claim.kind in ASKED_FIRST and claim.subject in MAIN


def _stays(claim: Claim) -> bool:
    return claim.kind in FIGURES or asked_first(claim)


def _altered(dies: DieGrid) -> Iterator[DieGrid]:
    rng = np.random.default_rng(_SEED)
    failing, passing = np.flatnonzero(dies == FAIL), np.flatnonzero(dies == PASS)
    added = min(round(ADDED * len(failing)), len(passing))
    for _ in range(TRIALS if len(failing) else 0):
        changed = dies.copy()
        changed.flat[failing[rng.random(len(failing)) < DROPPED]] = PASS
        changed.flat[rng.choice(passing, added, replace=False)] = FAIL
        yield changed
