"""Folding, negation and matching of phrases."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import given, strategies as st

from train.rubrics.folding import fold, singular
from train.rubrics.matching import match, similar

THRESHOLD = 0.713
WORDS = st.lists(st.sampled_from(["ring", "dense", "edge", "zone", "cluster", "line", "upper"]), min_size=1)


@pytest.mark.parametrize(
    "one, other",
    [
        ("Edge-Ring", "edge ring"),
        ("edge‑ring", "EDGE  RINGS"),
        ("5 o’clock", "five o'clock"),
        ("5 oclock", "5 O'Clock"),
        ("12 %", "12 percent"),
        ("12%", "12 per cent"),
        ("isn't", "is not"),
        ("1,040 dies", "1040 die"),
        ("the wafer's edge", "the wafer edge"),
        ("robot\n end-effector", "robot end effectors"),
    ],
)
def test_spellings_of_one_phrase_fold_alike(one: str, other: str) -> None:
    assert fold(one).words == fold(other).words


@pytest.mark.parametrize("word", ["gas", "annulus", "axis", "process", "thickness", "radius"])
def test_what_only_looks_like_a_plural_stays(word: str) -> None:
    assert singular(word) == word


@pytest.mark.parametrize(
    "plural, one",
    [("rings", "ring"), ("edges", "edge"), ("cavities", "cavity"), ("dies", "die"), ("processes", "process")],
)
def test_plurals(plural: str, one: str) -> None:
    assert singular(plural) == one


def test_numbers_and_signs_are_kept() -> None:
    assert fold("at (0.35, -0.2), 4-6 o'clock").words == ("at", "0.35", "-0.2", "4", "6", "oclock")


@pytest.mark.parametrize("text", ["a spring", "ringed", "the string of dies", "earring"])
def test_phrases_are_found_at_word_boundaries_only(text: str) -> None:
    assert not match(text, ["ring"]).hits


def test_a_phrase_does_not_reach_over_the_end_of_a_sentence() -> None:
    assert not match("The zone is the edge. Ring shapes are common.", ["edge ring"]).hits
    assert match("edge, ring", ["edge ring"]).hits


@pytest.mark.parametrize(
    "text",
    [
        "There is no ring.",
        "A wafer without a ring",
        "not a ring but a line",
        "No line, arc or ring is seen.",
        "neither a line nor a ring",
        "a ring is not visible",
        "The ring can't be seen.",
        "A ring pattern is absent",
        "a ring-free wafer",
        "it isn’t a closed ring",
        "free of any ring",
        "a line rather than a ring",
        "lacks a ring",
        "rings do not appear",
    ],
)
def test_negation_is_no_hit_and_no_offence(text: str) -> None:
    assert not match(text, ["ring"], fuzzy=THRESHOLD).hits
    assert not match(text, [], ["ring"]).avoided


@pytest.mark.parametrize(
    "text",
    [
        "No line; a ring remains.",
        "not a line but a ring",
        "No cluster, the dies form a ring.",
        "no line and a ring at the edge",
        "not only a ring",
        "It is not without a ring.",
        "No. A ring.",
        "No fewer than two rings",
        "Not a line: a ring.",
        "although no line is seen, a ring is",
        "no ring in the middle, but a ring at the edge",
    ],
)
def test_negation_ends_with_its_clause(text: str) -> None:
    assert match(text, ["ring"]).hits == ("ring",)
    assert match(text, [], ["ring"]).avoided == ("ring",)


def test_a_denial_can_itself_be_a_phrase() -> None:
    found = match("There is no ring.", ["no ring"], ["ring"])
    assert found.hits == ("no ring",) and not found.avoided


def test_said_must_hit_spans_are_masked() -> None:
    assert not match("A closed ring.", ["closed ring"], ["ring"]).avoided
    assert match("A closed ring and an open ring.", ["closed ring"], ["ring"]).avoided == ("ring",)
    # Only what was said of must-hit is masked; a span that reaches further is not within it.
    assert match("An edge ring.", ["edge"], ["edge ring"]).avoided == ("edge ring",)


@pytest.mark.parametrize(
    "phrase, text",
    [
        ("clusters near the center", "clustering near the centre"),
        ("edge of the wafer", "the edge of wafers"),
        ("dense cluster", "a densely packed cluster"),
        ("vertical line", "a vertically drawn line"),
    ],
)
def test_similar_words_are_a_second_pass(phrase: str, text: str) -> None:
    assert match(text, [phrase], fuzzy=THRESHOLD).hits == (phrase,)
    assert not match(text, [phrase]).hits


@pytest.mark.parametrize(
    "phrase, text",
    [
        ("upper right", "lower right"),
        ("3 o'clock", "4 o'clock"),
        ("even density", "uneven density"),
        ("symmetric pattern", "asymmetrical pattern"),
        ("uniform fill", "nonuniform fill"),
        ("closed ring", "closed. ring"),
        ("lift contact", "left contact"),
    ],
)
def test_similar_words_that_mean_another_thing(phrase: str, text: str) -> None:
    assert not match(text, [phrase], fuzzy=THRESHOLD).hits


def test_a_whole_phrase_threshold_would_confuse_quadrants() -> None:
    assert difflib.SequenceMatcher(None, "lower right", "upper right").ratio() > THRESHOLD


def test_similar_words_never_offend() -> None:
    assert not match("clustering", [], ["clustered"], THRESHOLD).avoided


def test_similarity_falls_to_nothing_as_the_threshold_rises() -> None:
    assert similar("vertically", "vertical", 0.8) and not similar("vertically", "vertical", 0.95)


def test_a_phrase_without_words_is_never_said() -> None:
    assert match("anything (at all)", ["()", " "], ["", "!"]) == match("other", ["()", " "])


def test_phrases_count_once() -> None:
    found = match("a ring, a ring", ["ring", "Rings", "line"], ["line", "line"])
    assert found.hits == ("ring",) and found.missed == ("line",)


@given(WORDS, WORDS, WORDS)
def test_every_phrase_is_found_in_the_text_that_holds_it(
    before: list[str], phrase: list[str], after: list[str]
) -> None:
    text = " ".join([*before, *phrase, *after])
    wanted = " ".join(phrase)
    assert match(text, [wanted]).hits == (wanted,)
    assert not match(text, [wanted], [wanted]).avoided
    assert match(f"No {text}", [wanted]).missed == (wanted,)


@given(st.text(), st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_any_text_gets_an_answer(text: str, hits: list[str], avoids: list[str]) -> None:
    found = match(text, hits, avoids, THRESHOLD)
    assert set(found.hits) | set(found.missed) <= set(hits) and set(found.avoided) <= set(avoids)
