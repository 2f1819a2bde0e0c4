"""What a report is made of: steps of blocks, which every format shows in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.assessment.texts import Table
from wafervlm.render import RenderSpec
from wafervlm.wafermap import WaferMap

SPEC = RenderSpec(144, 144)


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be reported, since its artefact is not there, and what makes that."""

    text: str


@dataclass(frozen=True, slots=True)
class Warn:
    """What must not be overlooked."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they stand for."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table; ``source`` is the number of the command that made it, ``strong`` the column to look at."""

    table: Table
    source: int | None = None
    strong: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How often each true class (rows) was answered as each class (columns)."""

    title: str
    labels: Sequence[str]
    table: Sequence[Sequence[int]]
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: ``data`` is the text of an SVG or the bytes of a PNG, ``name`` its file's without ending."""

    title: str
    name: str
    data: str | bytes
    source: int | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What ``who`` answered; ``right`` where that can be told; ``notes`` on it."""

    who: str
    answer: str
    right: bool | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A wafer that is said to show ``truth``, ``about`` it, and what was answered."""

    wafer: WaferMap | None
    truth: str
    about: str
    said: Sequence[Said]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Examples as pictures, drawn as ``spec`` says; ``wide`` where the answers are texts."""

    title: str
    note: str
    examples: Sequence[Example]
    spec: RenderSpec = SPEC
    source: int | None = None
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are there for who asks."""

    title: str
    blocks: Sequence[Block]


Block = Text | Missing | Warn | Facts | Sheet | Counts | Picture | Gallery | Fold


@dataclass(frozen=True, slots=True)
class Step:
    """One of the six steps."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Card:
    """A figure at the head of the report."""

    what: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command that made figures: its number, the stage it is of, and the line to type."""

    number: int
    stage: str
    line: str


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    about: str
    cards: Sequence[Card]
    steps: Sequence[Step]
    commands: Sequence[Command]
    origins: Sequence[Block]
    citations: Sequence[str]
