"""Checking what a model said of a wafer against its dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

from wafervlm.claims import Checked, check, extract, strike
from wafervlm.errors import MissingDependencyError, UsageError
from wafervlm.geometry import Geometry, measure_wafer
from wafervlm.words.description import Description

REDRAW_TEMPERATURE = 0.7


def need_scipy() -> None:
    """Raise MissingDependencyError where scipy is not installed, before anything was generated."""
    if find_spec("scipy") is None:
        raise MissingDependencyError(
            "to check what is said against the dies, scipy is needed; install it with: "
            "pip install 'wafervlm[words]', or leave the check out"
        )


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
            # Better no English than an untruth.
            first = again[0].claim
            shorter = text[: first.start] + text[first.end :]
        struck, text = (*struck, *again), shorter
        left = check(extract(text), geometry)
    claims = tuple(each for each in left if not each.contradicted)
    return replace(said, text=text, said=said.text, claims=claims, struck=struck)


def checked(said: Description) -> Description:
    """``said``, checked against the dies of its wafer; as it is where it has none or was cancelled."""
    if said.wafer is None or said.finish == "cancelled":
        return said
    return check_description(said, measure_wafer(said.wafer))


def best_answer(
    answer: Callable[[float, int | None], Description],
    *,
    check: bool,
    redraws: int,
    temperature: float,
    seed: int | None,
) -> Description:
    """What ``answer(temperature, seed)`` says, checked: the first answer of which nothing is struck, among
    one and at most ``redraws`` more, else the one of which the least is; of equal ones the one that says
    more. Unchecked where ``check`` is False, there are no dies, or it was cancelled. Raises UsageError."""
    if check:
        need_scipy()
    if isinstance(redraws, bool) or not isinstance(redraws, int) or redraws < 0:
        raise UsageError(f"redraws is {redraws!r}; it must be a whole number from 0")
    best = checked(answer(temperature, seed)) if check else answer(temperature, seed)
    for number in range(1, redraws + 1):
        if not best.struck:
            break
        # Another greedy answer would be the same.
        again = answer(temperature or REDRAW_TEMPERATURE, number if seed is None else seed + number)
        best = max(best, checked(again), key=_merit)
    return best


def _merit(found: Description) -> tuple[int, int]:
    return -len(found.struck), sum(each.supported for each in found.claims or ())


def lines(found: Description) -> Iterator[str]:
    """Each checked claim with its verdict and what was measured, as lines of text; struck ones last."""
    for each in (*(found.claims or ()), *found.struck):
        yield f"{each.verdict.value}: {phrase(each)} ({each.why})"


def phrase(each: Checked) -> str:
    """The words that make the claim, on one line."""
    return " ".join(each.claim.text.split())
