"""Doubts: what a model gets wrong about the very dies that it is to be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from train.vqa.facts import Facts
from wafervlm.claims import Claim, Topic, check, extract
from wafervlm.wafermap import DieGrid, WaferMap
from wafervlm.words.description import Description

# A wafer of which two structures and their places are told has some hundred tokens.
_MOST_TOKENS = 256


class Describer(Protocol):
    """What describes a wafer, as ``wafervlm.WaferVLM`` does."""

    def describe(self, wafer: WaferMap, *, check: bool, max_tokens: int) -> Description: ...


@dataclass(frozen=True)
class Doubts:
    """The topics on which ``model``, a bundle of the adapter that goes on, contradicts a wafer's dies.

    A model that is trained on texts without them learns to say what it will get right: R-Tuning (Zhang et
    al., 2024, "R-Tuning: Instructing Large Language Models to Say 'I Don't Know'"), with the dies as the
    judge and silence as the answer.
    """

    model: Describer

    def __call__(self, dies: DieGrid, found: Facts) -> frozenset[Topic]:
        """Of a wafer's ``dies`` (H, W) uint8, of which ``found`` was measured. Whether there is a
        structure at all is never doubted: the true statement stays, so that it is learned."""
        said = self.model.describe(WaferMap(dies), check=False, max_tokens=_MOST_TOKENS)
        wrong = (item.claim for item in check(extract(said.text), found.geometry) if item.contradicted)
        return frozenset(claim.topic for claim in wrong if not _whether(claim))


def _whether(claim: Claim) -> bool:
    """Whether it says that there is such a structure, or none."""
    return claim.plain == "any" or (claim.kind == "clusters" and claim.plain == 0)
