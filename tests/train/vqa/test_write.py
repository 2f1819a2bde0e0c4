from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from tests.wafervlm.claims import drawing
from tests.wafervlm.claims.drawing import DRAWN
from train.vqa.causes import default_causes
from train.vqa.descriptions import QUESTIONS
from train.vqa.facts import facts
from train.vqa.mix import Mix
from train.vqa.questions import BANK
from train.vqa.rubrics import rubric
from train.vqa.statements import altered
from train.vqa.write import DESCRIPTIONS, KINDS, answer, write
from wafervlm.claims import Claim, check, extract
from wafervlm.errors import ConfigError, UsageError
from wafervlm.geometry import ZONES, measure
from wafervlm.wafermap import WaferMap, transform
from wafervlm.words.question import DESCRIBE_QUESTION

Wafers = list[tuple[WaferMap, str]]
FORM = re.compile(
    r"1\. Spatial distribution: (.+)\n2\. Morphology: (.+)\n3\. Root-cause candidates: (.+)\.", re.DOTALL
)
STATEMENTS = ("spatial statement", "shape statement", "two statements")


@pytest.fixture(scope="module")
def wafers(real_wafers: Wafers) -> Wafers:
    """Some of each class, in lot order."""
    return real_wafers[::3]


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng([7, *seed])


def test_nothing_said_of_the_dies_is_contradicted_by_them(wafers: Wafers) -> None:
    said = 0
    for place, (wafer, label) in enumerate(wafers):
        geometry = measure(wafer.dies)
        for kind in KINDS:
            if kind == "structured":
                continue
            _, text = write(wafer.dies, label, rng(place), kind)
            # Labels and candidates are not measured: an arc on the dies may be labelled a ring.
            text = re.sub(r"Pattern type: \S+|Candidate[^.]*\.|3\. Root.*|^No\. ", "", text, flags=re.DOTALL)
            checked = check(extract(text), geometry)
            said += len(checked)
            assert not [found.why for found in checked if found.contradicted], (kind, label, text)
    assert said > 20 * len(wafers)


def test_a_full_description_has_its_three_parts_and_the_labels_candidates(wafers: Wafers) -> None:
    causes = default_causes()
    for place, (wafer, label) in enumerate(wafers):
        question, text = write(wafer.dies, label, rng(place), "full")
        found = FORM.fullmatch(text)
        assert question == DESCRIBE_QUESTION and found, text
        named = re.findall(r"candidate: ([^;]+)", found.group(3))
        assert named == [candidate.phrase for candidate in causes.of(label).candidates[:2]]
        assert bool(named) == (label != "none")
        assert all(extract(part) for part in found.groups()[:2]), text
        # What is said of causes is no claim about dies.
        assert not extract(found.group(3)) or label == "none"


def test_the_structured_description_holds_the_same_facts(wafers: Wafers) -> None:
    for wafer, label in wafers:
        found = facts(wafer.dies, label)
        told = json.loads(write(wafer.dies, label, rng(), "structured")[1])
        assert told["spatial"]["share"] == found.of_kind("share")[0].value
        assert told["spatial"].get("clock") == next(
            (c.value for c in found.of_kind("clock") if not c.subject), None
        )
        assert told["root_cause_candidates"] == [c.phrase for c in found.pattern.candidates[:2]]
        assert told["morphology"]


def test_sizes_and_lengths_are_told_when_asked_alone(wafers: Wafers) -> None:
    asked = 0
    for wafer, label in wafers:
        for claim in extract(write(wafer.dies, label, rng(), "full")[1]):
            assert claim.kind not in ("size", "extent") and claim.subject != "second cluster"
        found = facts(wafer.dies, label)
        if sizes := found.of_kind("size"):
            told = answer(found, rng(), "size")
            assert told is not None and extract(told.text)[0].plain == sizes[0].plain
            asked += 1
    assert asked > 10


def test_rings_scatter_and_full_wafers_get_no_clock_position(wafers: Wafers) -> None:
    placeless = {"Donut", "Edge-Ring", "Random", "Near-full", "none"}
    told = Counter[str]()
    for place, (wafer, label) in enumerate(wafers):
        for kind in KINDS:
            _, text = write(wafer.dies, label, rng(place), kind)
            clocked = "o'clock" in text or '"clock"' in text
            assert not (clocked and label in placeless), (kind, text)
            told[label] += clocked
    assert told["Edge-Loc"] > 10 and told["Scratch"] > 4


def test_no_question_tells_the_class(wafers: Wafers) -> None:
    telling = default_causes().telling
    asked = set(QUESTIONS.values())
    for place, (wafer, label) in enumerate(wafers):
        for kind in KINDS:
            for turn in range(3 if kind in STATEMENTS else 1):
                asked.add(write(wafer.dies, label, rng(place, turn), kind)[0])
    asked |= {wording for question in BANK.values() for wording in question.wordings}
    assert not [question for question in asked if telling.search(question)]


def test_half_of_the_statements_are_false_and_the_dies_say_which(wafers: Wafers) -> None:
    verdicts = Counter[str]()
    for place, (wafer, label) in enumerate(wafers):
        found = facts(wafer.dies, label)
        for kind in STATEMENTS:
            said = answer(found, rng(place), kind)
            if said is None:
                continue
            quoted = re.findall(r'"(.*)"', said.question)[0]
            checked = check(extract(quoted), found.geometry)
            assert checked
            wrong = any(one.contradicted for one in checked)
            assert said.text.startswith("No." if wrong else "Yes."), said
            assert wrong or all(one.supported for one in checked)
            verdicts[said.text.split(".")[0]] += 1
    assert 0.35 < verdicts["No"] / verdicts.total() < 0.65


def test_the_answer_follows_the_dies_when_they_are_turned(wafers: Wafers) -> None:
    turned = 0
    for wafer, label in wafers:
        if label != "Edge-Loc":
            continue
        for symmetry in range(8):
            dies = transform(wafer.dies, symmetry)
            _, text = write(dies, label, rng(symmetry), "full")
            assert not any(found.contradicted for found in check(extract(text), measure(dies)))
            before = write(wafer.dies, label, rng(symmetry), "full")[1]
            turned += text != before
    assert turned > 10


def test_the_same_generator_writes_the_same(wafers: Wafers) -> None:
    wafer, label = wafers[12]
    texts = {write(wafer.dies, label, rng(seed), "full")[1] for seed in range(30)}
    assert len(texts) > 1
    assert write(wafer.dies, label, rng(3), "full") == write(wafer.dies, label, rng(3), "full")


def test_rewarded_phrases_are_in_the_reference_and_the_avoided_are_not(wafers: Wafers) -> None:
    from train.rubrics.matching import match

    rewarded = 0
    for place, (wafer, label) in enumerate(wafers):
        found = facts(wafer.dies, label)
        for kind in BANK:
            said = answer(found, rng(place), kind)
            if said is None or not said.must_hit:
                continue
            rewarded += 1
            seen = match(said.text, said.must_hit, said.must_avoid)
            assert not seen.missed and not seen.avoided, (kind, said)
            assert len(said.must_hit) <= 5 and len(said.must_avoid) <= 4
            assert not [text for text in (*said.must_hit, *said.must_avoid) if len(text.split()) > 6]
    assert rewarded > 8 * len(wafers)


def asked(mix: Mix, wafer: WaferMap, label: str, *seed: int) -> tuple[str, str]:
    told = mix(wafer.dies, label, rng(*seed))
    assert told is not None
    return told


def test_a_mix_draws_kinds_by_their_weights() -> None:
    wafer, label = WaferMap(DRAWN["spot"]), "Loc"
    mix = Mix({"full": 3.0, "share": 1.0})
    drawn = Counter(asked(mix, wafer, label, turn)[0] == DESCRIBE_QUESTION for turn in range(200))
    assert 0.65 < drawn[True] / 200 < 0.85
    with pytest.raises(ConfigError, match="'fully' of question is not known"):
        Mix({"fully": 1.0})
    with pytest.raises(ConfigError, match="weight 0"):
        Mix({"full": 0.0})
    with pytest.raises(ConfigError, match="0 or more"):
        Mix({"full": float("nan")})


def test_where_no_zone_stands_out_the_question_is_answered_so() -> None:
    found = facts(drawing.wafer(drawing.spot(6, 0.5, 0.15), 0.15), "Loc")
    assert found.of_kind("zone")[0].subject == "pattern"
    told = answer(found, rng(0), "zone")
    assert told is not None and told.text == "No zone stands out."


def test_a_phrase_is_avoided_only_where_no_reading_of_it_is_true(wafers: Wafers) -> None:
    avoided = 0
    for map_, label in wafers:
        found = facts(map_.dies, label)
        for zone in ZONES:
            if f"{zone} zone" in rubric(found, rng(0)).spatial_rubric.spatial_avoid:
                avoided += 1
                assert not found.holds(Claim("zone", zone))
                assert not found.holds(Claim("zone", ("pattern", zone)))
    assert avoided > 10


def test_a_number_that_hangs_on_a_few_dies_is_not_put_into_a_false_statement() -> None:
    assert altered(Claim("clusters", "any")) == [Claim("clusters", 0)]
    assert [claim.plain for claim in altered(Claim("clusters", 2))] == [0, 1, 3]


def test_json_says_that_there_is_one_where_no_number_is_told() -> None:
    told = answer(facts(DRAWN["spots"], "Loc"), rng(0), "structured")
    assert told is not None and json.loads(told.text)["morphology"]["clusters"] is True


def test_a_mix_leaves_statements_unsaid() -> None:
    wafer = WaferMap(DRAWN["spot"])
    whole, part = (Mix({"full": 1.0}, unsaid=unsaid) for unsaid in (0.0, 0.3))
    counts = [len(extract(asked(part, wafer, "Loc", turn)[1])) for turn in range(40)]
    assert min(counts) < max(counts) == len(extract(asked(whole, wafer, "Loc")[1]))


def test_where_label_and_dies_disagree_on_a_place_it_is_neither_said_nor_denied() -> None:
    found = facts(DRAWN["spot"], "none")
    assert found.disputed and not found.of_kind("clock", "span", "quadrant", "side")
    for kind in KINDS:
        for turn in range(20):
            told = answer(found, rng(turn), kind)
            told_of = "" if told is None else f"{told.question} {told.text} {told.must_hit} {told.must_avoid}"
            assert "clock" not in told_of.replace(BANK["clock"].wordings[0], ""), (kind, told_of)
    judged = rubric(found, rng(0)).spatial_rubric
    assert not any("clock" in phrase for phrase in judged.spatial_avoid) and not judged.clock_position


def test_where_label_and_dies_disagree_on_a_place_a_mix_asks_nothing() -> None:
    spot, ring, mix = DRAWN["spot"], DRAWN["ring"], Mix()
    assert facts(spot, "none").disputed and mix(spot, "none", rng()) is None
    for dies, label in ((spot, "Loc"), (ring, "Edge-Ring"), (ring, "Edge-Loc")):
        assert not facts(dies, label).disputed and mix(dies, label, rng()) is not None


def test_what_is_not_known_is_refused(wafers: Wafers) -> None:
    dies = wafers[0][0].dies
    with pytest.raises(UsageError, match="kind 'poem' of question is not known; known are full"):
        write(dies, "Loc", rng(), "poem")
    with pytest.raises(ConfigError, match=r"has no \[label.Locs\]"):
        write(dies, "Locs", rng(), "full")


def test_every_kind_has_wordings_and_a_type() -> None:
    assert set(DESCRIPTIONS) == {"full", "spatial only", "root cause only", "structured"}
    groups = Counter(question.group for question in BANK.values())
    assert set(groups) == {"defect type", "spatial", "morphological", "root_cause", "consistency"}
    for group in groups:
        of_group = {question.difficulty for question in BANK.values() if question.group == group}
        assert of_group >= {"easy", "hard"}
