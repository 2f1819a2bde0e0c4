"""What is read in texts that people and models write."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from wafervlm.claims import Claim, extract
from wafervlm.claims.extract import _read

LINES = [
    line.split("=>", 1)
    for line in Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()
    if "=>" in line and not line.startswith("#")
]
DESCRIPTION = (
    "1. Spatial distribution: About 12 percent of the dies fail, mostly at the edge."
    " The pattern lies at 5 o'clock."
    "\n2. Morphology: A dense cluster of 40 dies. Few failing dies lie elsewhere. No ring or line is visible."
    "\n3. Root-cause candidates: candidate: clamp contact at the edge; candidate: drying."
    " A ring is typical."
)


def claims(words: str) -> list[Claim]:
    found = []
    for item in filter(None, (part.strip() for part in _split(words))):
        kind, value = item.split("=", 1)
        try:
            plain = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            plain = value
        found.append(Claim(kind.lstrip("!"), plain, negated=kind.startswith("!")))
    return found


def _split(words: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for sign in words:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


@pytest.mark.parametrize(("sentence", "expected"), LINES)
def test_sentence(sentence: str, expected: str) -> None:
    sentence = sentence.strip()
    found = extract(sentence)
    assert sorted(map(str, map(_key, found))) == sorted(map(str, map(_key, claims(expected))))
    for claim in found:
        assert sentence[claim.start : claim.end] == claim.text != ""


def _key(claim: Claim) -> tuple[object, ...]:
    return claim.kind, claim.value, claim.negated


def test_description_in_three_parts() -> None:
    found = [(claim.kind, claim.value, claim.negated) for claim in extract(DESCRIPTION)]
    assert found == [
        ("share", 12, False),
        ("zone", "edge", False),
        ("clock", 5, False),
        ("clusters", "any", False),
        ("density", "dense", False),
        ("size", ("cluster", 40), False),
        ("background", "few", False),
        ("ring", "any", True),
        ("line", "any", True),
    ]


def test_morphology_is_read_after_causes() -> None:
    text = "**Root cause:**\n- a scratch at 5 o'clock\n- edge bead\n\n**Morphology:**\nA closed ring."
    assert extract(text) == [Claim("ring", "closed")]


def test_spans_are_those_of_the_text_as_given() -> None:
    text = "İ — **About 12 % of the dies fail**, at 5 o’clock."
    assert [claim.text for claim in extract(text)] == ["About 12 % of the dies fail", "at 5 o’clock"]


def test_claims_are_equal_where_they_claim_the_same() -> None:
    assert extract("It is at 5 o'clock.") == extract("The pattern lies near five oclock.")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.lists(st.sampled_from([line[0] for line in LINES]), max_size=3))
def test_any_text_is_read(noise: str, parts: list[str]) -> None:
    text = noise + " ".join(parts) + noise
    for claim in extract(text):
        assert text[claim.start : claim.end] == claim.text


def test_long_answers_take_milliseconds() -> None:
    """A description takes 2 ms the first time and far less once its sentences were met."""
    extract(DESCRIPTION)
    start = time.process_time()
    for _ in range(50):
        extract(DESCRIPTION)
    assert (time.process_time() - start) / 50 < 2e-3


@pytest.mark.parametrize(
    "text", ["a " * 4000, "no ring, " * 500, "5 to " * 1000, "dense " * 1000, "of the " * 1500]
)
def test_time_grows_with_the_text_alone(text: str) -> None:
    _read.cache_clear()
    start = time.process_time()
    extract(text)
    assert time.process_time() - start < 3
