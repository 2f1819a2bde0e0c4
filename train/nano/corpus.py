"""What nano's base is taught: questions about the dies, answered by measuring them.

No label enters, and no answer depends on one: the base learns to see where dies fail, how many, and in what
shapes. ``QUESTIONS`` are the templates about dies as they are; ``SAID`` are those of the bank behind the
descriptions (``train.vqa``) that the dies alone decide, where noise is told from patterns first.

The last part of the training also asks to repeat made-up words, alone or in the published recipe's
sentence. Adapters do not train the embeddings; without it, the tokens that spell a user's classes would be
as they were drawn, all pushed the same way, and hard to tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.nano.config import END_OF_TURN, IMAGE_PAD, TURN, VISION_END, VISION_START
from train.nano.raw_clusters import RawCluster, Sighting, sight
from train.synthetic import scene
from train.vqa.facts import facts
from train.vqa.write import KINDS, answer, write
from wafervlm.task import RECIPE_CONTEXT, RECIPE_QUESTION, WAFER_DEFECTS
from wafervlm.wafermap import DieGrid

CLASS_NAMES = frozenset(
    part for label in WAFER_DEFECTS.labels for part in (label.casefold(), *label.casefold().split("-"))
)


@dataclass(frozen=True)
class Question:
    """A template: how it may be asked, and the answer measured on the dies."""

    wordings: tuple[str, ...]
    answer: Callable[[Sighting], str]


@dataclass(frozen=True)
class Turn:
    """One question and its answer, as text."""

    question: str
    answer: str


def _percent(share: float) -> str:
    return str(round(100 * share))


def _levels(shares: NDArray[np.float64]) -> str:
    return "".join(str(round(9 * float(np.sqrt(share)))) for share in shares)


def _zones(found: Sighting) -> str:
    inner, middle, outer = (_percent(share) for share in found.shares.zones)
    return f"inner {inner}, middle {middle}, outer {outer} percent."


def _ring(found: Sighting) -> str:
    return f"{'Yes' if found.has_ring else 'No'}, {found.ring_hours} of 12 hours."


def _place(cluster: RawCluster) -> str:
    return f"{cluster.zone} zone, radius {_percent(cluster.radius)}, {cluster.hour} o'clock."


def _extent(cluster: RawCluster) -> str:
    rim = "at the rim" if cluster.rim else "inside"
    return f"{cluster.size} dies, length {_percent(cluster.length)}, width {_percent(cluster.width)}, {rim}."


def _of_cluster(rank: int, say: Callable[[RawCluster], str]) -> Callable[[Sighting], str]:
    return lambda found: (
        say(found.clusters[rank]) if len(found.clusters) > rank else "There is no such cluster."
    )


def _line(found: Sighting) -> str:
    lines = [c for c in found.clusters if c.is_line]
    if not lines:
        return "No."
    longest = max(lines, key=lambda c: c.length)
    return f"Yes, {len(lines)}; length {_percent(longest.length)}, {_place(longest)}"


def _densest(found: Sighting) -> str:
    row, column = np.unravel_index(int(found.shares.grid.argmax()), found.shares.grid.shape)
    return f"row {row + 1}, column {column + 1}."


QUESTIONS: dict[str, Question] = {
    "share": Question(
        ("What share of the dies fails?", "How many dies fail, in percent?"),
        lambda found: f"{_percent(found.shares.share)} percent.",
    ),
    "zones": Question(("What share fails in each zone?", "Failing share by zone?"), _zones),
    "rings": Question(("Failing share in six rings outwards?",), lambda found: _levels(found.shares.rings)),
    "rim": Question(("Failing share at the rim by hour?",), lambda found: _levels(found.shares.rim_hours)),
    "middle": Question(
        ("Failing share in the middle by hour?",), lambda found: _levels(found.shares.middle_hours)
    ),
    "grid": Question(
        ("Failing share on a five by five grid?",),
        lambda found: " ".join(_levels(row) for row in found.shares.grid),
    ),
    "densest": Question(("Where on the grid do most dies fail?",), _densest),
    "ring": Question(("Is there a ring at the rim?", "Do failing dies form a ring?"), _ring),
    "line": Question(("Is there a line?", "Do failing dies form a line?"), _line),
    "clusters": Question(("How many clusters are there?",), lambda found: f"{len(found.clusters)}."),
    "lonely": Question(
        ("What share of the failing dies stands alone?",),
        lambda found: f"{_percent(found.shares.lonely)} percent.",
    ),
    "largest place": Question(("Where is the largest cluster?",), _of_cluster(0, _place)),
    "largest extent": Question(("How large is the largest cluster?",), _of_cluster(0, _extent)),
    "second place": Question(("Where is the second cluster?",), _of_cluster(1, _place)),
    "second extent": Question(("How large is the second cluster?",), _of_cluster(1, _extent)),
}

# Harder questions, and those with long answers, teach more of the image: they are asked more often.
WEIGHTS = {"grid": 3.0, "rim": 2.0, "middle": 2.0, "largest extent": 2.0, "line": 2.0, "largest place": 1.5}


# Kinds of train.vqa.write without a word on classes and causes; places are asked most, since a class says
# nothing of them and an adapter for classes forgets them.
SAID = {
    "share": 1.0,
    "zone": 2.0,
    "clock": 4.0,
    "span": 3.0,
    "quadrant": 2.0,
    "where": 3.0,
    "shape": 2.0,
    "clusters": 1.0,
    "size": 2.0,
    "extent": 2.0,
    "density": 1.0,
    "round": 1.0,
    "line": 1.0,
    "background": 1.0,
    "morphology": 2.0,
    "spatial statement": 1.0,
    "shape statement": 1.0,
}
# Of the labels the one whose patterns may lie anywhere: no place is kept back.
_ANYWHERE = "Loc"


def said_turns(dies: DieGrid, rng: np.random.Generator, count: int) -> list[Turn]:
    """``count`` different questions of ``SAID`` about ``dies`` with their answers, in random order; fewer
    where the dies have no answer to one."""
    weights = np.array(list(SAID.values()))
    chosen = rng.choice(len(SAID), size=count, replace=False, p=weights / weights.sum())
    found = facts(dies, _ANYWHERE)
    said = [answer(found, rng, list(SAID)[i]) for i in chosen]
    return [Turn(each.question, each.text) for each in said if each is not None]


def turns(dies: DieGrid, rng: np.random.Generator, count: int) -> list[Turn]:
    """``count`` different questions about ``dies`` with their answers, in random order."""
    found = sight(dies)
    names = list(QUESTIONS)
    weights = np.array([WEIGHTS.get(name, 1.0) for name in names])
    chosen = rng.choice(len(names), size=count, replace=False, p=weights / weights.sum())
    asked = [QUESTIONS[names[i]] for i in chosen]
    return [Turn(q.wordings[int(rng.integers(len(q.wordings)))], q.answer(found)) for q in asked]


def repeated_words(pieces: Sequence[str], rng: np.random.Generator) -> Turn:
    """A request to repeat made-up words joined from ``pieces``, and its answer. None is a class's name."""
    words: list[str] = []
    while len(words) < int(rng.integers(1, 4)):
        word = "".join(rng.choice(pieces, size=int(rng.integers(1, 4))))
        if word.casefold() not in CLASS_NAMES:
            words.append(word)
    text = " ".join(words)
    if rng.random() < 0.4:
        text = f"{WAFER_DEFECTS.answer_prefix} {text}{WAFER_DEFECTS.answer_suffix}"
    return Turn(f"Repeat: {text}", text)


def letter_pieces(tokenizer: Any) -> list[str]:
    """The letters of every token of ``tokenizer`` that has only ASCII letters and hyphens, spaces aside."""
    texts = {tokenizer.decode([index]).strip() for index in range(len(tokenizer))}
    return sorted(text for text in texts if text.isascii() and text.replace("-", "a").isalpha())


def segments(asked: list[Turn], image_tokens: int, image_first: bool) -> Iterator[tuple[str, bool]]:
    """One turn of the family's chat format that asks all questions and answers them in order, cut into
    (text, learned): the answers are learned, with the token that ends them. The image stands before or
    after the questions."""
    image = VISION_START + IMAGE_PAD * image_tokens + VISION_END
    questions = " ".join(turn.question for turn in asked)
    opening = image + questions if image_first else questions + image
    yield f"{TURN}user\n{opening}{END_OF_TURN}\n{TURN}assistant\n", False
    yield " ".join(turn.answer for turn in asked) + END_OF_TURN, True
    yield "\n", False


def tokenizer_texts(seed: int, scenes: int = 2000, *, said: bool = False) -> Iterator[str]:
    """Texts for the tokenizer: this corpus on synthetic scenes, the names of the roles, and the question of
    the published recipe; what is ``said`` in descriptions of any label, too."""
    rng = np.random.default_rng(seed)
    for _ in range(scenes):
        yield RECIPE_CONTEXT + RECIPE_QUESTION
        yield "The wafer map image indicates the presence of defect."
        yield "user\nassistant\n"
        dies = scene(rng)
        for turn in turns(dies, rng, len(QUESTIONS)):
            yield turn.question
            yield turn.answer
        if said:
            label = str(rng.choice(WAFER_DEFECTS.labels))
            for kind in ("full", str(rng.choice(KINDS))):
                yield from write(dies, label, rng, kind)
