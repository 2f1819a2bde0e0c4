"""The third ruler: what answers claim of the dies, and whether it is so. Every figure has its interval over
resampled lots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.assessment.cases import Case, Cases
from benchmarks.assessment.rulers import main_zone
from benchmarks.statistics import Floats, Interval, Ints, ratio_by_lot
from wafervlm.claims import Checked, Verdict, distinct
from wafervlm.claims.measured import hours_apart

# Of what a clock position may be said where it is that of the pattern; the first that is named counts.
DOMINATING = (None, "largest cluster", "line", "cluster")
# Where the pattern has none, another cluster or a line may still have one.
PATTERN = DOMINATING[:2]
EDGE_LOC = "Edge-Loc"

Checks = Sequence[Sequence[Checked]]
Picks = Callable[[Checked], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Ratio:
    """A figure as a sum over a sum: (N,) parts and wholes by wafer."""

    above: Floats
    below: Floats

    def interval(self, lots: Ints) -> Interval | None:
        """The figure with its interval, None where there is nothing to take it on."""
        return ratio_by_lot(self.above, self.below, lots)


def check_answers(texts: Sequence[str], cases: Cases) -> list[list[Checked]]:
    """The claims of each answer, checked by its wafer's ruler."""
    return [case.ruler.check(distinct(text)) for text, case in zip(texts, cases.cases, strict=True)]


def ratios(checks: Checks, cases: Cases) -> dict[str, Ratio]:
    """The figures of one subject's descriptions by name, as parts and wholes.

    ``precision`` is supported over supported and contradicted claims; ``contradiction_rate`` contradicted
    over all; ``untold_rate`` those that cannot be told; ``recall`` the share of what is worth saying that is
    said, kind and structure alike, and rightly. ``zone_right``: of the wafers that have a main zone
    those whose answer names a zone, and only right ones. ``clock_right``: of the Edge-Loc maps with a clock
    position those whose answer gives one, within one hour; ``edge_loc_right``: of all Edge-Loc maps, those
    without a position being right where none is given. ``clock_for_ring``: of the rings those given a clock
    position or a span, other than of their gap; ``clock_without_place``: of all patterns that have none those
    that are given one.
    """
    every = _all(cases)
    placeless = [case.ruler.hour is None for case in cases.cases]
    placed = _by_case(checks, lambda found: bool(_placed(found)))
    pattern_placed = _by_case(checks, lambda found: any(of in PATTERN for of in _placed(found)))
    edge = [case.label == EDGE_LOC for case in cases.cases]
    hours = np.array([_hour_right(found, case) for found, case in zip(checks, cases.cases, strict=True)])
    return {
        **_of_claims(checks, cases),
        "recall": Ratio(
            np.array([_recall(found, case) for found, case in zip(checks, cases.cases, strict=True)]), every
        ),
        "zone_right": _among(_by_case(checks, _zone_right), [case.ruler.zoned for case in cases.cases]),
        "clock_right": _among(hours, [e and not p for e, p in zip(edge, placeless, strict=True)]),
        "edge_loc_right": _among(hours, edge),
        "clock_for_ring": _among(placed, [case.ruler.ring for case in cases.cases]),
        "clock_without_place": _among(pattern_placed, placeless),
    }


def claim_figures(checks: Checks, cases: Cases) -> dict[str, Any]:
    """The figures of ``ratios`` with intervals, and the claims' by dimension, kind and label."""
    kinds = sorted({item.claim.kind for found in checks for item in found})
    labels = sorted({case.label for case in cases.cases})
    return {
        "answers": len(cases),
        "without_a_claim": sum(not found for found in checks),
        **_plain(ratios(checks, cases), cases),
        "by_dimension": {
            name: _part(checks, cases, lambda item, name=name: item.claim.dimension == name)  # type: ignore[misc]
            for name in ("spatial", "morphology")
        },
        "by_kind": {
            kind: _part(checks, cases, lambda item, kind=kind: item.claim.kind == kind)  # type: ignore[misc]
            for kind in kinds
        },
        "by_label": {label: _of_label(checks, cases, label) for label in labels},
    }


def _of_claims(checks: Checks, cases: Cases) -> dict[str, Ratio]:
    told = {
        verdict: _count(checks, lambda item, verdict=verdict: item.verdict is verdict)  # type: ignore[misc]
        for verdict in Verdict
    }
    supported, contradicted = told[Verdict.SUPPORTED], told[Verdict.CONTRADICTED]
    claims = np.asarray(sum(told.values()))
    return {
        "precision": Ratio(supported, supported + contradicted),
        "contradiction_rate": Ratio(contradicted, claims),
        "untold_rate": Ratio(told[Verdict.UNTOLD], claims),
        "claims_per_answer": Ratio(claims, _all(cases)),
    }


def _part(checks: Checks, cases: Cases, picks: Picks) -> dict[str, Any]:
    """Of the claims that are picked: how many, and how true."""
    part = [[item for item in found if picks(item)] for found in checks]
    counts = {
        verdict.value: sum(item.verdict is verdict for found in part for item in found) for verdict in Verdict
    }
    found = _of_claims(part, cases)
    return {
        **counts,
        "answers": sum(bool(found) for found in part),
        **_plain({name: found[name] for name in ("precision", "contradiction_rate")}, cases),
    }


def _of_label(checks: Checks, cases: Cases, label: str) -> dict[str, Any]:
    kept = [found if case.label == label else [] for found, case in zip(checks, cases.cases, strict=True)]
    wafers = sum(case.label == label for case in cases.cases)
    part = _part(kept, cases, lambda _: True)
    return {"wafers": wafers, "claims_per_answer": sum(map(len, kept)) / wafers, **part}


def _plain(found: dict[str, Ratio], cases: Cases) -> dict[str, Any]:
    intervals = {name: ratio.interval(cases.lots) for name, ratio in found.items()}
    return {name: None if one is None else one.to_dict() for name, one in intervals.items()}


def _count(checks: Checks, picks: Picks) -> Floats:
    return np.array([sum(map(picks, found)) for found in checks], dtype=np.float64)


def _by_case(checks: Checks, holds: Callable[[Sequence[Checked]], bool]) -> Floats:
    return np.array([holds(found) for found in checks], dtype=np.float64)


def _among(hits: Floats, members: Iterable[bool]) -> Ratio:
    below = np.array(list(members), dtype=np.float64)
    return Ratio(hits * below, below)


def _all(cases: Cases) -> Floats:
    return np.ones(len(cases))


def _zone_right(found: Sequence[Checked]) -> bool:
    said = [item for item in found if main_zone(item.claim) and not item.claim.negated]
    return bool(said) and all(item.supported for item in said)


def _hours(found: Sequence[Checked]) -> list[tuple[str | None, int]]:
    """The clock positions that are said, with what they are said of; those of a gap are not among them."""
    claims = (item.claim for item in found if item.claim.kind == "clock" and not item.claim.negated)
    return [(claim.subject, claim.plain) for claim in claims if claim.subject != "gap"]


def _placed(found: Sequence[Checked]) -> list[str | None]:
    """What clock positions and spans are said of."""
    claims = (item.claim for item in found if item.claim.kind == "span" and not item.claim.negated)
    said = [*(claim.subject for claim in claims), *(subject for subject, _ in _hours(found))]
    return [subject for subject in said if subject != "gap"]


def _hour_right(found: Sequence[Checked], case: Case) -> bool:
    hours, hour = _hours(found), case.ruler.hour
    if hour is None:
        return not any(subject in PATTERN for subject, _ in hours)
    said = next((of for name in DOMINATING if (of := [h for s, h in hours if s == name])), [])
    return bool(said) and all(hours_apart(one, hour) <= 1 for one in said)


def _recall(found: Sequence[Checked], case: Case) -> float:
    told = {item.claim.topic for item in found if item.supported}
    worth = [claim.topic for claim in case.ruler.statements]
    return sum(topic in told for topic in worth) / len(worth) if worth else 1.0
