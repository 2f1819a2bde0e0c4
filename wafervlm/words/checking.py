"""Checking what a model said of a wafer against its dies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from wafervlm.claims import Checked, check, extract, strike
from wafervlm.errors import MissingDependencyError
from wafervlm.geometry import Geometry, measure_wafer
from wafervlm.wafermap import WaferMap
from wafervlm.words.description import Description


def measured(wafer: WaferMap) -> Geometry:
    """What is measured on the dies of ``wafer``. Raises MissingDependencyError without scipy."""
    try:
        return measure_wafer(wafer)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"to check what is said, {error}; or leave the check out") from None


def check_description(said: Description, geometry: Geometry) -> Description:
    """``said`` with every claim of its text checked: contradicted ones are struck from ``text`` and listed in
    ``struck``, the others are listed in ``claims`` with their places in ``text``."""
    found = check(extract(said.text), geometry)
    struck = tuple(each for each in found if each.contradicted)
    text = strike(said.text, [each.claim for each in struck])
    left = check(extract(text), geometry) if struck else found
    # What is left of a sentence may say something else than the sentence did: once more, then.
    while again := [each for each in left if each.contradicted]:
        shorter = strike(text, [each.claim for each in again])
        if shorter == text:
            break
        struck, text = (*struck, *again), shorter
        left = check(extract(text), geometry)
    claims = tuple(each for each in left if not each.contradicted)
    return replace(said, text=text, said=said.text, claims=claims, struck=struck)


def best_of(answers: Iterator[Description], geometry: Geometry) -> Description:
    """The first of ``answers`` of which nothing is struck, else the one of which the least is; of equal ones
    the one that says more."""
    best: Description | None = None
    for answer in answers:
        found = check_description(answer, geometry)
        if not found.struck:
            return found
        if best is None or _merit(found) > _merit(best):
            best = found
    if best is None:
        raise ValueError("there is no answer to choose from")
    return best


def _merit(found: Description) -> tuple[int, int]:
    return -len(found.struck), sum(each.supported for each in found.claims)


def lines(found: Description) -> Iterator[str]:
    """Each claim with its verdict and what was measured, as lines of text; struck ones last."""
    for each in (*found.claims, *found.struck):
        yield f"{each.verdict.value}: {_phrase(each)} ({each.why})"


def _phrase(each: Checked) -> str:
    return " ".join(each.claim.text.split())
