"""The bank of questions about a wafer: how each may be asked, and what answers it.

No wording names a class or a synonym of one, and all are asked of every pattern alike, so that a question
tells nothing. ``BANK`` holds them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from train.vqa.answers import (
    Answer,
    absent,
    all_candidates,
    backgrounds,
    defect_type,
    equipment,
    extents,
    first_of,
    main_shape,
    main_zone,
    no_cluster,
    no_pattern,
    one_candidate,
    quadrants,
    reasoned_candidates,
    reasoned_type,
    stated,
    step,
    two_stated,
    whole_shape,
    whole_spatial,
)
from train.vqa.facts import Facts
from train.vqa.phrases import NO_CLOCK, Rng

Answerer = Callable[[Facts, Rng, str], Answer | None]


@dataclass(frozen=True, slots=True)
class Question:
    """One question: its ``type`` and ``difficulty``, the ``group`` that a wafer's choice is made by, the
    ``wordings``, and the ``answer`` to a wording, None where the dies give none."""

    type: str
    difficulty: str
    group: str
    wordings: tuple[str, ...]
    answer: Answerer


def _spatial(difficulty: str, wordings: Sequence[str], answer: Answerer) -> Question:
    return Question("spatial", difficulty, "spatial", tuple(wordings), answer)


def _shape(difficulty: str, wordings: Sequence[str], answer: Answerer) -> Question:
    return Question("morphological", difficulty, "morphological", tuple(wordings), answer)


def _type(difficulty: str, wordings: Sequence[str], answer: Answerer) -> Question:
    return Question("morphological", difficulty, "defect type", tuple(wordings), answer)


def _cause(difficulty: str, wordings: Sequence[str], answer: Answerer) -> Question:
    return Question("root_cause", difficulty, "root_cause", tuple(wordings), answer)


def _consistency(difficulty: str, wordings: Sequence[str], answer: Answerer) -> Question:
    return Question("consistency", difficulty, "consistency", tuple(wordings), answer)


BANK: dict[str, Question] = {
    "defect type": _type(
        "easy",
        ("Which type of pattern is this?", "What type of pattern do the failing dies show?"),
        defect_type,
    ),
    "reasoned type": _type(
        "hard",
        ("Which type of pattern is this, and what on the dies speaks for it?",),
        reasoned_type,
    ),
    "share": _spatial(
        "easy", ("What share of the dies fails?", "How many dies fail, in percent?"), first_of("share")
    ),
    "zone": _spatial(
        "easy",
        ("In which zone do most dies fail?", "Which zone has most failing dies?"),
        first_of("zone", tried=main_zone, without="No zone stands out."),
    ),
    "clock": _spatial(
        "medium",
        ("At which clock position is the pattern?", "Where on the clock do most dies fail?"),
        first_of("clock", without=f"It has {NO_CLOCK}."),
    ),
    "span": _spatial(
        "hard",
        ("From which to which clock position do failing dies reach?",),
        first_of("span", "clock", without=f"They have {NO_CLOCK}."),
    ),
    "quadrant": _spatial(
        "medium",
        ("Which quadrant holds most failing dies?",),
        first_of("quadrant", tried=quadrants, without="No quadrant stands out."),
    ),
    "where": _spatial(
        "hard", ("Where do the dies fail?", "Describe where the failing dies lie."), whole_spatial
    ),
    "shape": _shape(
        "easy",
        ("What shape do the failing dies make?", "Which shape do the failing dies have?"),
        main_shape,
    ),
    "clusters": _shape(
        "easy",
        ("How many clusters are there?",),
        first_of("clusters", tried=no_cluster),
    ),
    "size": _shape(
        "medium",
        ("How many dies does the largest cluster have?",),
        first_of("size", tried=no_cluster),
    ),
    "extent": _shape(
        "medium",
        ("How long is the pattern?", "How far does the pattern reach?"),
        first_of("extent", tried=extents),
    ),
    "density": _shape(
        "medium",
        ("Is the pattern dense or sparse?",),
        first_of("density", tried=no_pattern),
    ),
    "round": _shape(
        "medium",
        ("Do the failing dies go all the way round the wafer?",),
        first_of("ring", tried=absent("ring")),
    ),
    "line": _shape(
        "medium",
        ("Do the failing dies form a line?",),
        first_of("line", tried=absent("line")),
    ),
    "background": _shape(
        "medium",
        ("How many dies fail outside of the pattern?",),
        first_of("background", tried=backgrounds),
    ),
    "morphology": _shape(
        "hard", ("Describe the morphology of the pattern.", "Describe the shape of the pattern."), whole_shape
    ),
    "candidate": _cause(
        "easy", ("Name one root-cause candidate.", "What is one root-cause candidate?"), one_candidate
    ),
    "equipment": _cause("easy", ("Which kind of equipment should be checked first?",), equipment),
    "step": _cause("medium", ("Which process step should be checked first?",), step),
    "candidates": _cause(
        "medium", ("Name the root-cause candidates.", "Which root causes are candidates?"), all_candidates
    ),
    "reasoned candidates": _cause(
        "hard",
        ("Name the root-cause candidates, and what on the dies speaks for them.",),
        reasoned_candidates,
    ),
    "spatial statement": _consistency(
        "easy",
        ('A note says: "{}" Do the dies agree?', 'Confirm or correct: "{}"'),
        stated("share", "count", "clock", "span", "quadrant", "side"),
    ),
    "shape statement": _consistency(
        "medium",
        ('A note says: "{}" Do the dies agree?', 'Confirm or correct: "{}"'),
        stated("clusters", "size", "extent", "density", "background", "scatter"),
    ),
    "two statements": _consistency(
        "hard",
        ('A note says: "{}" Do the dies agree with both?',),
        two_stated(
            ("share", "count", "clock", "span", "quadrant", "side"),
            ("clusters", "size", "extent", "density", "background", "scatter"),
        ),
    ),
}
