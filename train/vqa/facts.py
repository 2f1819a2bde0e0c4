"""Facts: what may be said of one wafer. Of the dies what was measured, of causes what the table has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from train.vqa.causes import Causes, Pattern, default_causes
from train.vqa.steady import steady
from wafervlm.claims import Claim, Verdict, check, state
from wafervlm.geometry import Geometry, measure
from wafervlm.wafermap import DieGrid

# Claims of a place on the clock or to one side, which a ring, a scatter or a full wafer does not have.
PLACED = frozenset({"clock", "span", "quadrant", "side"})


@dataclass(frozen=True, slots=True)
class Facts:
    """One wafer: its ``geometry``, the ``pattern`` that its label stands for in the table of causes, and the
    ``statements`` that are true of its dies and do not hang on a few of them, those that weigh most first.
    ``causes`` is the whole table."""

    geometry: Geometry
    pattern: Pattern
    statements: tuple[Claim, ...]
    causes: Causes

    @property
    def spatial(self) -> tuple[Claim, ...]:
        """The statements about where failing dies lie."""
        return tuple(claim for claim in self.statements if claim.dimension == "spatial")

    @property
    def morphology(self) -> tuple[Claim, ...]:
        """The statements about the shape of the pattern."""
        return tuple(claim for claim in self.statements if claim.dimension == "morphology")

    @property
    def placeless(self) -> bool:
        """Whether the dies have no clock position, so that there is none may be said."""
        return self.geometry.main_hour is None

    @property
    def disputed(self) -> bool:
        """Whether the dies have a clock position and the label is of a pattern without one: a structure
        dominates that the label is not about. Its position is neither said nor denied."""
        return not self.placeless and not self.pattern.clock

    def of_kind(self, *kinds: str) -> tuple[Claim, ...]:
        """The statements of any of ``kinds``."""
        return tuple(claim for claim in self.statements if claim.kind in kinds)

    def holds(self, claim: Claim) -> bool:
        """Whether the dies bear out ``claim``."""
        return self.verdict(claim) is Verdict.SUPPORTED

    def verdict(self, claim: Claim) -> Verdict:
        """What the dies say of ``claim``."""
        return check([claim], self.geometry)[0].verdict


def facts(dies: DieGrid, label: str, causes: Causes | None = None) -> Facts:
    """Measure ``dies`` (H, W) uint8 of a wafer said to show ``label``. Raises ConfigError where ``causes``,
    the workshop's own table when None, does not have the label."""
    table = causes or default_causes()
    pattern, geometry = table.of(label), measure(dies)
    return Facts(geometry, pattern, steady(tuple(_kept(state(geometry), pattern)), dies), table)


def _kept(statements: Iterable[Claim], pattern: Pattern) -> Iterable[Claim]:
    return (claim for claim in statements if pattern.clock or not _places(claim))


def _places(claim: Claim) -> bool:
    return claim.kind in PLACED
