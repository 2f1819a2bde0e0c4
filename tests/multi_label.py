"""A multi-label task for tests, and what shows several of its classes."""

from __future__ import annotations

from wafervlm.render import RenderSpec
from wafervlm.task import Task


def multi_task(side: int, **changes: object) -> Task:
    """Four classes, two of which begin alike, on images of ``side`` pixels."""
    settings: dict[str, object] = {
        "labels": ("Center", "Edge-Loc", "Edge-Ring", "Scratch"),
        "name": "mixed",
        "prompt": "Which defects does this wafer show?",
        "answer_prefix": "",
        "answer_suffix": ":",
        "kind": "multi-label",
        "render": RenderSpec(side, side),
        **changes,
    }
    return Task(**settings)  # type: ignore[arg-type]
