"""Judging maps by part: labels of part test judge part test alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from train.cleaning.source import Labelled
from train.cleaning.suspects import Floats, Ints, Judged, Suspect, judge


def judge_parts(given: Labelled, geometry: Floats, vision: Floats, *, seed: int) -> Judged:
    """As ``judge``, but which maps of the other parts are suspects is decided without the labels of part
    test, so that these say nothing of what is trained on; maps of part test are judged by all labels."""
    whole = judge(given.rows, geometry, vision, seed=seed)
    parts = np.array(given.part_of())
    others = np.flatnonzero(parts != "test")
    if len(others) in (0, len(parts)):
        return whole
    part = judge(given.rows.take(others), geometry[others], vision[others], seed=seed)
    tested = [s for s in whole.suspects if parts[s.row] == "test"]
    return _joined(whole, part, others, tested)


def _joined(whole: Judged, part: Judged, places: Ints, tested: list[Suspect]) -> Judged:
    """``whole`` with the suspects, scores and typical maps of ``part``, whose rows lie at ``places``."""
    score = whole.score.copy()
    score[places] = part.score
    suspects = [replace(s, row=int(places[s.row])) for s in part.suspects] + tested
    return replace(
        whole,
        suspects=tuple(sorted(suspects, key=lambda s: -s.score)),
        score=score,
        near={label: places[rows] for label, rows in part.near.items()},
        far={label: places[rows] for label, rows in part.far.items()},
        rare=part.rare,
    )
