"""A page as one HTML file that needs nothing from outside, and as Markdown with its pictures beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from benchmarks.cookbook.blocks import Block, Command, Fold, Gallery, Page, Picture, Sheet, Step
from benchmarks.pictures import picture
from benchmarks.report import unique
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import WaferMap

HTML, MARKDOWN, PICTURES = "report.html", "report.md", "pictures"
_TEMPLATES = Path(__file__).parents[1] / "templates"
# Cells longer than this are sentences, and break.
_SENTENCE = 60
_NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]?\d+)?( %| \[.*\]|( / [\d,]+)*)$|-$")
_SPECIAL = re.compile(r"([\\`*_<>\[\]|])")


def write_html(page: Page, path: Path) -> None:
    """Write ``page`` as one HTML file with its pictures in it."""
    environment = _environment(autoescape=True)
    environment.filters |= {
        "inline": _inline,
        "drawn": picture,
        "wordy": _wordy,
        "texts": _texts,
        "unbroken": _unbroken,
    }
    path.write_text(environment.get_template("cookbook.html.j2").render(page=page), encoding="utf-8")


def write_markdown(page: Page, path: Path) -> None:
    """Write ``page`` as Markdown, and its pictures into the folder ``pictures`` beside it."""
    folder = path.parent / PICTURES
    environment = _environment(autoescape=False)

    def file(block: Picture) -> str:
        data, ending = (block.data, "png") if isinstance(block.data, bytes) else (block.data.encode(), "svg")
        return _kept(folder, f"{block.name}.{ending}", data)

    def file_of(wafer: WaferMap, spec: RenderSpec) -> str:
        data = _png(wafer, spec)
        return _kept(folder, f"wafer-{hashlib.sha256(data).hexdigest()[:12]}.png", data)

    environment.filters |= {"file": file, "file_of": file_of, "md": _markdown, "row": _row, "rule": _rule}
    environment.filters["answerers"] = _answerers
    text = environment.get_template("cookbook.md.j2").render(page=page)
    path.write_text(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", encoding="utf-8")


def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": lambda block: type(block).__name__, "commands": commands_of}
    environment.filters["first_in"] = _first_in
    return environment


def commands_of(step: Step, page: Page) -> list[Command]:
    """The commands that the figures of ``step`` come from."""
    numbers = {source for block in step.blocks for source in _sources(block)}
    return [command for command in page.commands if command.number in numbers]


def _first_in(step: Step, page: Page) -> set[int]:
    """Numbers of the commands of ``step`` that no step before it has: links lead there."""
    before = page.steps[: list(page.steps).index(step)]
    seen = {command.number for one in before for command in commands_of(one, page)}
    return {command.number for command in commands_of(step, page)} - seen


def _sources(block: Block) -> Iterator[int]:
    if isinstance(block, Fold):
        for inner in block.blocks:
            yield from _sources(inner)
    source = getattr(block, "source", None)
    if source is not None:
        yield source


def _inline(block: Picture) -> Markup:
    if isinstance(block.data, str):
        return Markup(unique(block.data, block.name))
    data = base64.b64encode(block.data).decode("ascii")
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(data, block.title)


def _unbroken(line: str) -> Markup:
    """A command whose words stay whole where they fit on a line: browsers break after hyphens."""
    return Markup(" ").join(
        Markup("<span>{}</span>").format(word) if len(word) < _SENTENCE else word for word in line.split(" ")
    )


def _png(wafer: WaferMap, spec: RenderSpec) -> bytes:
    pixels = render(wafer, replace(spec, height=144, width=144))
    file = io.BytesIO()
    Image.fromarray(pixels).quantize(8, method=Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _kept(folder: Path, name: str, data: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return f"{PICTURES}/{name}"


def _wordy(block: Sheet) -> bool:
    """Whether the table holds sentences, which break."""
    return any(len(cell) > _SENTENCE for row in block.table.rows for cell in row)


def _texts(block: Sheet) -> set[int]:
    """The columns that hold words rather than numbers."""
    columns = [{cell for cell in column if cell} for column in zip(*block.table.rows, strict=True)]
    return {place for place, cells in enumerate(columns) if not any(_NUMBER.match(cell) for cell in cells)}


def _rule(block: Sheet) -> str:
    words = {0, *_texts(block)}
    return f"|{'|'.join('---' if i in words else '---:' for i in range(len(block.table.header)))}|"


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(_markdown(str(cell)) for cell in cells)} |"


def _markdown(text: str) -> str:
    """``text`` on one line, with what Markdown would read as its own escaped."""
    return _SPECIAL.sub(r"\\\1", str(text)).replace("\n", "<br>")


def _answerers(block: Gallery) -> list[str]:
    return list(dict.fromkeys(said.who for one in block.examples for said in one.said))
