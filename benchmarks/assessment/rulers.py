"""What claims about a wafer are held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from wafervlm.claims import Checked, Claim, check, state
from wafervlm.claims.claim import MAIN
from wafervlm.geometry import Geometry

RINGS = ("ring", "annulus")


def main_zone(claim: Claim) -> bool:
    """Whether a claim is of the main zone, that of the failing dies or of the pattern."""
    return claim.kind == "zone" and claim.subject in MAIN


class Ruler(Protocol):
    """The truth about one wafer, as far as it is known.

    ``hour`` is the clock position of its pattern, None where that has none; ``zoned`` says whether it has
    a main zone, ``ring`` whether a ring dominates; ``statements`` are what is worth saying, all true.
    """

    @property
    def hour(self) -> int | None: ...
    @property
    def zoned(self) -> bool: ...
    @property
    def ring(self) -> bool: ...
    @property
    def statements(self) -> Sequence[Claim]: ...

    def check(self, claims: Iterable[Claim]) -> list[Checked]:
        """Each claim with its verdict."""
        ...


class Measured:
    """What the station measures on the dies."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.statements: tuple[Claim, ...] = state(geometry)

    @property
    def hour(self) -> int | None:
        return self.geometry.main_hour

    @property
    def zoned(self) -> bool:
        return any(map(main_zone, self.statements))

    @property
    def ring(self) -> bool:
        return self.geometry.pattern in RINGS

    def check(self, claims: Iterable[Claim]) -> list[Checked]:
        """As ``wafervlm.claims.check``."""
        return check(claims, self.geometry)
