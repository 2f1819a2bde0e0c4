"""A small sound set of RL rows, for tests to plant defects in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PATTERNS = {
    "Edge-Ring": ("edge zone", "closed ring", "etch gas flow"),
    "Center": ("center zone", "one dense cluster", "CMP uniformity"),
    "Scratch": ("middle zone", "rising line", "robot end-effector"),
    "Random": ("no zone", "stand alone", "clean-room particles"),
    "Loc": ("upper right", "small cluster", "particle fall-on"),
    "Donut": ("middle ring zone", "open annulus", "radial temperature"),
}
DIMENSIONS = ("spatial", "morphology", "root_cause")
_ANSWERS = (
    "Most dies fail in this place: {}.",
    "The failing dies are best called {}, and nothing else.",
    "Candidate: {}.",
)


def sound_rows(wafers: int = 4) -> list[Row]:
    """Rows in the published layout: ``wafers`` of each class, one row for each dimension."""
    return [
        _row(label, wafer, place)
        for label in PATTERNS
        for wafer in range(wafers)
        for place in range(len(DIMENSIONS))
    ]


def _row(label: str, wafer: int, place: int) -> Row:
    hit = PATTERNS[label][place]
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}
    return {
        "id": f"{label}-{wafer}-{DIMENSIONS[place]}",
        "image": f"{label}/{wafer}.png",
        "prompt": [user],
        "rubric": {"defect_types": [label], "spatial_rubric": {"zone": "center (0, 0) clear"}},
        "dimension": DIMENSIONS[place],
        "must_hit": [hit],
        "must_avoid": [phrases[place] for other, phrases in PATTERNS.items() if other != label],
        "reference_answer": _ANSWERS[place].format(hit),
        "difficulty": "easy",
    }


def write(path: Path, rows: list[Row]) -> Path:
    """Write ``rows`` as a JSON list."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def changed(change: Callable[[Row], object], at: int = 1) -> list[Row]:
    """The sound rows with ``change`` made to one of them; number 1 is of Edge-Ring's shape."""
    rows = sound_rows()
    change(rows[at])
    return rows
