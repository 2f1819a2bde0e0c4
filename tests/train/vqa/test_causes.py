from __future__ import annotations

from pathlib import Path

import pytest

from train.vqa.causes import CATEGORIES, CAUSES, default_causes, read_causes
from wafervlm.errors import ConfigError
from wafervlm.task import WAFER_DEFECTS

OWN = """
[source.fab]
strength = "weak"
works = ["our own notes"]

[label.Streak]
clock = true
synonyms = ["stripe"]
candidate = [{ phrase = "worn belt", category = "Handling", step = "transport", source = "fab" }]
"""


def test_the_table_covers_every_class_and_cites_every_candidate() -> None:
    causes = default_causes()
    causes.check_labels(WAFER_DEFECTS.labels)
    for label in WAFER_DEFECTS.labels:
        pattern = causes.of(label)
        assert bool(pattern.candidates) == (label != "none")
        for candidate in pattern.candidates:
            assert causes.works[candidate.source]
            assert candidate.category in CATEGORIES
    clocked = {label for label in WAFER_DEFECTS.labels if causes.of(label).clock}
    assert clocked == {"Center", "Edge-Loc", "Loc", "Scratch"}


@pytest.mark.parametrize(
    "text", ["the Edge-Loc one", "an edge pattern", "centre", "RANDOM", "near-full", "doughnut", "none"]
)
def test_words_that_tell_a_class_are_found(text: str) -> None:
    assert default_causes().telling.search(text)


@pytest.mark.parametrize("text", ["Where do dies fail?", "local" + "e", "nearly", "spring", "ledger"])
def test_other_words_are_not(text: str) -> None:
    assert not default_causes().telling.search(text)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    causes = read_causes(path)
    assert causes.of("Streak").candidates[0].phrase == "worn belt"
    assert causes.telling.search("a stripe")
    with pytest.raises(ConfigError, match=r"has no \[label.Streaks\], though it has \[label.Streak\]"):
        causes.of("Streaks")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("clock = true", "clock = 1", "must be true or false"),
        ("clock = true", "", "has no clock"),
        ("clock = true", "clock = true\nsynonym = []", "did you mean 'synonyms'"),
        ('"Handling"', '"Cooking"', "known are Lithography"),
        ('source = "fab"', 'source = "hearsay"', "has no \\[source.hearsay\\]"),
        ('"weak"', '"strong"', "must be published or weak"),
        ('"worn belt"', '"worn belt; dirt"', "one short phrase"),
        ('"worn belt"', '"cause of wear"', "one short phrase"),
        ('["our own notes"]', "[]", "name at least one work"),
        ("[source.fab]", "[source.fab", "not valid TOML"),
        ('["stripe"]', '"stripe"', "must be a list of texts"),
    ],
)
def test_a_table_with_a_fault_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "own.toml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_causes(path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the table of causes"):
        read_causes(tmp_path / "gone.toml")


def test_the_shipped_table_explains_its_keys() -> None:
    head = CAUSES.read_text(encoding="utf-8").split("[source.")[0]
    assert all(word in head for word in ("clock", "synonyms", "candidate", "strength", "never as the cause"))
