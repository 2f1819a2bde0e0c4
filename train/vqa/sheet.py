"""A sheet of samples to look at: maps of each class with all that was written of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from train.vqa.causes import Causes
from train.vqa.wafers import WaferRows

TEMPLATE = "sheet.html.j2"
PER_CLASS = 3


def write_sheet(path: Path, rows: Sequence[WaferRows], causes: Causes, per_class: int = PER_CLASS) -> None:
    """Write an HTML page about the first ``per_class`` wafers of each class, images beside it."""
    by_class: dict[str, list[WaferRows]] = {}
    for found in rows:
        by_class.setdefault(found.wafer.label, []).append(found)
    chosen = {label: found[:per_class] for label, found in sorted(by_class.items())}
    page = _environment().get_template(TEMPLATE).render(classes=chosen, causes=causes)
    path.write_text(page, encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
