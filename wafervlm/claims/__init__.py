"""Words that are checked: what a text says of the dies of a wafer, and whether it is so.

    text -> extract -> claims -> check(claims, geometry) -> verdicts -> strike
    geometry -> state -> claims -> say, tell -> text

A claim is a kind and a value (``Claim`` lists them); ``check`` says when each is supported. A geometry is
what ``wafervlm.geometry`` measures on a die grid: nothing here measures, so nothing here needs scipy.
"""

from wafervlm.claims.check import check
from wafervlm.claims.claim import KINDS, MORPHOLOGY, SPATIAL, Checked, Claim, Topic, Verdict
from wafervlm.claims.extract import distinct, extract
from wafervlm.claims.figures import ClaimFigures, measure_claims
from wafervlm.claims.say import WORDINGS, say, tell
from wafervlm.claims.state import state
from wafervlm.claims.strike import strike

__all__ = [
    "KINDS",
    "MORPHOLOGY",
    "SPATIAL",
    "WORDINGS",
    "Checked",
    "Claim",
    "ClaimFigures",
    "Topic",
    "Verdict",
    "check",
    "distinct",
    "extract",
    "measure_claims",
    "say",
    "state",
    "strike",
    "tell",
]
