"""What is left of a text when claims are taken out of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tests.wafervlm.claims.spoken import statements
from wafervlm.claims import Claim, extract, strike, tell

SENTENCES = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()
TEXT = (
    "1. Spatial distribution: About 12 percent of the dies fail. The pattern lies at 5 o'clock.\n"
    "2. Morphology: The failing dies form a closed ring. Few failing dies lie elsewhere.\n"
    "3. Root-cause candidates: candidate: clamp contact."
)


@pytest.mark.parametrize(
    ("text", "kinds", "left"),
    [
        ("A dense cluster lies at 5 o'clock.", ["density"], "A cluster lies at 5 o'clock."),
        ("There is an elongated cluster. It is dense.", ["density"], "There is an elongated cluster."),
        ("The pattern lies at 5 o'clock in the edge zone.", ["clock"], "The pattern lies in the edge zone."),
        ("The pattern lies in the edge zone at 5 o'clock.", ["clock"], "The pattern lies in the edge zone."),
        ("About 3 percent of the dies fail, mostly at the edge.", ["share"], ""),
        (
            "About 3 percent of the dies fail, and the ring is closed.",
            ["ring"],
            "About 3 percent of the dies fail.",
        ),
        ("About 3 percent of the dies fail, and the ring is closed.", ["share"], "The ring is closed."),
        ("There is a ring and there is a line.", ["ring"], "There is a line."),
        ("At 5 o'clock, two clusters are visible.", ["clock"], "Two clusters are visible."),
        ("The pattern lies at 5 o'clock.", ["clock"], ""),
        ("Look: a wafer. The ring is closed. It was drawn.", ["ring"], "Look: a wafer. It was drawn."),
        ("The ring is closed", [], "The ring is closed"),
        ("The largest cluster, at 8 o'clock, is dense.", ["clock"], "The largest cluster is dense."),
        ("Zone: edge. Clock position: 5 o'clock.", ["zone"], "Clock position: 5 o'clock."),
        ("There are two clusters: one at 3 o'clock.", ["clock"], "There are two clusters."),
        ("Defects lie at the edge, particularly around 6 o'clock.", ["clock"], "Defects lie at the edge."),
    ],
)
def test_as_little_as_can_be(text: str, kinds: list[str], left: str) -> None:
    assert strike(text, [claim for claim in extract(text) if claim.kind in kinds]).strip() == left


def test_parts_stay() -> None:
    struck = [claim for claim in extract(TEXT) if claim.kind in ("share", "clock", "ring")]
    assert strike(TEXT, struck) == (
        "1. Spatial distribution: cannot be told.\n"
        "2. Morphology: Few failing dies lie elsewhere.\n"
        "3. Root-cause candidates: candidate: clamp contact."
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(statements(), max_size=8), st.integers(0, 2), st.data())
def test_what_is_struck_goes_and_nothing_else(said: list[Claim], wording: int, data: st.DataObject) -> None:
    text = tell(said, wording)
    claims = extract(text)
    out = [data.draw(st.booleans()) for _ in claims]
    left = strike(text, [claim for claim, gone in zip(claims, out, strict=True) if gone])
    assert extract(left) == [claim for claim, gone in zip(claims, out, strict=True) if not gone]
    assert strike(text, claims) == ""


@pytest.mark.parametrize("line", [line for line in SENTENCES if "=>" in line])
def test_in_what_people_write_struck_claims_are_gone_and_none_is_new(line: str) -> None:
    text = line.split("=>")[0].strip()
    claims = extract(text)
    for claim in claims:
        left = strike(text, [claim])
        assert Counter(extract(left)) <= Counter(claims) - Counter([claim])
        assert left == "" or left[0] == left[0].upper()
