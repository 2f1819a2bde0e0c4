"""The reward from the dies themselves: what an answer claims of them, checked."""

from __future__ import annotations

from collections.abc import Collection

from wafervlm.claims import Checked, Topic, check, distinct
from wafervlm.geometry import Geometry


def checked_claims(text: str, geometry: Geometry) -> list[Checked]:
    """The claims of ``text``, checked; one that is made twice counts once."""
    return check(distinct(text), geometry)


def topics_of(text: str, geometry: Geometry) -> frozenset[Topic]:
    """What ``text`` makes supported claims about."""
    return frozenset(item.claim.topic for item in checked_claims(text, geometry) if item.supported)


def claims_score(
    solution: str, whole: str, geometry: Geometry, topics: Collection[Topic], floor: int
) -> float:
    """0..1: the precision of the claims of the ``whole`` answer, times how much of what was asked the
    ``solution`` says.

    Precision is supported over supported and contradicted claims; those that the dies cannot decide count for
    neither. What was asked are the ``topics`` of the reference answer: a supported claim on each of ``floor``
    of them, or of all where they are fewer, is enough. So true claims beside the question earn nothing,
    silence earns nothing, and each wrong claim costs, in the reasoning too. Without topics it is 0.
    """
    needed = min(floor, len(topics))
    said = len(topics_of(solution, geometry) & set(topics))
    if not needed or not said:
        return 0.0
    verdicts = checked_claims(whole, geometry)
    supported = sum(item.supported for item in verdicts)
    contradicted = sum(item.contradicted for item in verdicts)
    # What the solution supports may be read otherwise within the whole, where it stands beside other text.
    precision = supported / max(supported + contradicted, 1)
    return precision * min(1.0, said / needed)
