from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

import wafervlm
from tests.wafervlm.claims.drawing import DRAWN
from train.vqa.descriptions import Unsaid, describe
from train.vqa.doubts import Doubts
from train.vqa.facts import facts
from train.vqa.mix import Mix
from wafervlm.claims import Topic, check, extract
from wafervlm.wafermap import WaferMap
from wafervlm.words.description import Description
from wafervlm.words.question import DESCRIBE_QUESTION

# A round spot near the edge; it has a clock position, a zone and no line.
SPOT = DRAWN["spot"]
ZONE: Topic = ("zone", None, False)
CLOCK: Topic = ("clock", None, False)


@dataclass
class Scripted:
    """Says ``text`` of every wafer."""

    text: str
    shown: list[WaferMap] = field(default_factory=list)

    def describe(self, wafer: WaferMap, *, check: bool, max_tokens: int) -> Description:
        self.shown.append(wafer)
        return Description(self.text, DESCRIBE_QUESTION, (), "stop", 0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("text", "doubted"),
    [
        ("The failing dies lie mostly in the center zone.", {ZONE}),
        ("The pattern lies in the center zone.", {ZONE}),
        ("There is a line. The line is falling.", {("line", None, False)}),
        # That there is a line is not doubted, but learned to be wrong.
        ("There is a line.", set()),
        ("There is no cluster.", set()),
        ("No die fails.", {("share", None, False)}),
        ("", set()),
    ],
)
def test_what_the_dies_contradict_is_doubted(text: str, doubted: set[Topic]) -> None:
    assert Doubts(Scripted(text))(SPOT, facts(SPOT, "Loc")) == doubted


def test_what_is_doubted_is_left_out_whichever_way_it_is_told() -> None:
    found = facts(SPOT, "Loc")
    whole = describe(found, rng(), "full")
    assert {ZONE, CLOCK} <= {claim.topic for claim in extract(whole)}
    for kind in ("full", "spatial only"):
        left = extract(describe(found, rng(), kind, Unsaid(doubted=lambda: frozenset({ZONE, CLOCK}))))
        assert left and not {ZONE, CLOCK} & {claim.topic for claim in left}
    assert describe(found, rng(), "full", Unsaid()) == whole


def test_a_part_is_never_left_without_a_statement() -> None:
    found = facts(SPOT, "Loc")
    every = frozenset(claim.topic for claim in found.statements)
    for chance in (0.0, 0.4):
        told = extract(describe(found, rng(), "full", Unsaid(chance, lambda: every)))
        assert {claim.dimension for claim in told} == {"spatial", "morphology"}


def test_a_mix_asks_the_model_about_the_dies_as_they_are_shown_and_for_descriptions_alone() -> None:
    model = Scripted("The failing dies lie mostly in the center zone. There is a line.")
    mix = Mix({"full": 0.4, "share": 0.4, "root cause only": 0.2}, doubts=Doubts(model))
    told = [mix(SPOT, "Loc", rng(seed)) for seed in range(20)]
    described = [said for said in told if said is not None and said[0] == DESCRIBE_QUESTION]
    assert len(model.shown) == len(described) > 0 and all((w.dies == SPOT).all() for w in model.shown)
    assert not any(claim.topic == ZONE for _, text in described for claim in extract(text))


def test_the_embedded_model_doubts_what_it_gets_wrong(real_wafers: list[tuple[WaferMap, str]]) -> None:
    pytest.importorskip("scipy")
    model = wafervlm.load(threads=1)
    doubts, wrong = Doubts(model), 0
    for wafer, label in real_wafers[::4]:
        found = facts(wafer.dies, label)
        said = check(extract(model.describe(wafer, check=False).text), found.geometry)
        doubted = doubts(wafer.dies, found)
        assert doubted <= {item.claim.topic for item in said if item.contradicted}
        wrong += bool(doubted)
    assert wrong < len(real_wafers[::4]) / 2
