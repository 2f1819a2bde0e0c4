"""Claims against the dies: what was measured decides, a claim at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from wafervlm.claims.check_places import PLACES
from wafervlm.claims.check_structures import STRUCTURES
from wafervlm.claims.claim import Checked, Claim, Verdict
from wafervlm.claims.measured import Found

if TYPE_CHECKING:
    from wafervlm.geometry import Geometry

_CHECKS: dict[str, Callable[[Claim, Geometry], Found]] = {**PLACES, **STRUCTURES}
_OPPOSITE = {
    Verdict.SUPPORTED: Verdict.CONTRADICTED,
    Verdict.CONTRADICTED: Verdict.SUPPORTED,
    Verdict.UNTOLD: Verdict.UNTOLD,
}


def check(claims: Iterable[Claim], geometry: Geometry) -> list[Checked]:
    """Each claim with its verdict, in the order given.

    | kind       | supported where                                                | cannot be told where  |
    |------------|----------------------------------------------------------------|-----------------------|
    | share      | within 2 points or 15 %, or on the right side of a bound       |                       |
    | count      | within 3 dies or 20 %                                          |                       |
    | zone       | the zone of highest contrast or within 10 % of it; where none  |                       |
    |            | stands out, as for the dominating structure                    |                       |
    | zone, of a | its middle lies there, give or take 0.05 of the radius, or it  | the cluster is beyond |
    | structure  | reaches the rim and the edge is said                           | those listed          |
    | clear      | at most 2 % of the zone fails, or a third of the overall share |                       |
    | clock      | within 1 hour of the dominating or the named structure         | as for zone           |
    | span       | each end within 1 hour, clockwise                              | as for zone           |
    | quadrant   | the structure's hour is in it, else its share stands out       | as for zone           |
    | side       | the structure's hour is within 2 of its middle                 | as for zone           |
    | pattern    | the dominating structure is any but none                       |                       |
    | ring       | there is one of this form, its radius within 5 points          |                       |
    | line       | there is one with this trait                                   |                       |
    | clusters   | the count of all, or of those of a quarter of the largest      |                       |
    | size       | within 3 dies or 20 %                                          | as for zone           |
    | extent     | within 6 points or 25 %                                        | a ring dominates      |
    | density    | dense from 0.5 of the outline, sparse up to 0.6                | a ring, no cluster    |
    | scatter    | alone: half of the failing dies; spread: half of the share     |                       |
    |            | is in no structure                                             |                       |
    | background | few up to 5 % of the other dies, some 2 to 15 %, many from 8 % |                       |
    | repeat     | one is measured, with these periods                            |                       |
    | symmetry   | at least 0.7; where not said, about the centre                 | about an axis alone   |

    A clock position, span or quadrant of a pattern that has none (ring, annulus, scatter, full, none, or
    whatever lies in the center zone) is contradicted, and so is what is said of a structure that is not
    there.
    A negated claim is supported where the claim is contradicted, and the reverse. Evidence is the dies of the
    structures that support a claim.
    """
    return [_checked(claim, geometry) for claim in claims]


def _checked(claim: Claim, geometry: Geometry) -> Checked:
    found = _CHECKS[claim.kind](claim, geometry)
    verdict = _OPPOSITE[found.verdict] if claim.negated else found.verdict
    bears_out = verdict is Verdict.SUPPORTED and not claim.negated
    return Checked(replace(claim), verdict, found.why, found.dies if bears_out else None)
