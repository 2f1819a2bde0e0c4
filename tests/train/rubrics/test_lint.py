"""The linter: a sound set passes, and each defect that was seen in public data is found when planted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.rubrics.rows import PATTERNS, Row, changed, sound_rows, write
from train.rubrics.attacks import earned, frequent_phrases
from train.rubrics.findings import ERRORS, WARNINGS
from train.rubrics.formula import OPTIMISED, PUBLISHED, STRICT
from train.rubrics.lint import Limits, LintReport, lint
from train.rubrics.reading import read_set
from wafervlm.errors import DatasetError, UsageError

PLANTED = "Edge-Ring-0-morphology"


def linted(tmp_path: Path, rows: list[Row], **options: object) -> LintReport:
    return lint(write(tmp_path / "rl.json", rows), **options)  # type: ignore[arg-type]


def test_a_sound_set_passes(tmp_path: Path) -> None:
    report = linted(tmp_path, sound_rows())
    assert report.passed and not report.findings, report.failures
    assert report.rows == report.scored == 72 and not report.not_applicable
    for found in report.dimensions.values():
        assert found.reference.value == 1.0 and found.empty == 0
        assert found.wrong_class is not None and found.wrong_class < 0.1
        assert found.constant is not None and found.constant < 0.3
    published = linted(tmp_path, sound_rows(), formula=PUBLISHED)
    assert published.passed and published.dimensions["spatial"].empty == pytest.approx(0.4)


PLANTS: dict[str, tuple[Callable[[Row], object], str, str]] = {
    "cut at commas": (
        lambda row: row.update(must_hit=["center (0", "0) clear", "closed ring"]),
        "comma-piece",
        "0) clear",
    ),
    "unbalanced": (lambda row: row["must_avoid"].append("line (long"), "broken-phrase", "line (long"),
    "loose end": (lambda row: row["must_avoid"].append("a line with a"), "broken-phrase", "a line with a"),
    "only a number": (lambda row: row["must_avoid"].append("0.35"), "broken-phrase", "0.35"),
    "no word": (lambda row: row["must_avoid"].append(" "), "empty-phrase", " "),
    "too many": (
        lambda row: row.update(must_avoid=[f"phrase {i}" for i in range(1040)]),
        "long-list",
        "phrase 0",
    ),
    "avoid inside hit": (lambda row: row["must_avoid"].append("ring"), "avoid-inside-hit", "ring"),
    "both": (lambda row: row["must_avoid"].append("Closed rings"), "contradiction", "Closed rings"),
    "reference misses": (
        lambda row: row.update(reference_answer="The dies at the rim fail."),
        "reference-misses",
        "closed ring",
    ),
    "reference offends": (
        lambda row: row.update(reference_answer="A closed ring and a rising line."),
        "reference-offends",
        "rising line",
    ),
    "no dimension": (lambda row: row.pop("dimension"), "unknown-dimension", ""),
    "unknown dimension": (lambda row: row.update(dimension="colour"), "unknown-dimension", ""),
    "no image": (lambda row: row.update(image=""), "no-image", ""),
    "no hits": (lambda row: row.pop("must_hit"), "malformed", ""),
    "no hits and no avoids": (
        lambda row: [row.pop(key) for key in ("must_hit", "must_avoid", "dimension")],
        "malformed",
        "",
    ),
    "a rubric and a prompt alone": (
        lambda row: [row.pop(key) for key in set(row) - {"id", "image", "prompt", "rubric"}],
        "malformed",
        "",
    ),
    "a reference alone": (
        lambda row: [row.pop(key) for key in set(row) - {"id", "image", "reference_answer"}],
        "malformed",
        "",
    ),
    "a rubric alone": (
        lambda row: [row.pop(key) for key in set(row) - {"id", "image", "rubric"}],
        "malformed",
        "",
    ),
    "no avoids": (lambda row: row.pop("must_avoid"), "malformed", ""),
    "no column": (lambda row: [row.pop(key) for key in set(row) - {"id"}], "malformed", ""),
    "no rubric": (lambda row: row.pop("rubric"), "malformed", ""),
    "empty section": (lambda row: row["rubric"].update(spatial_rubric={}), "malformed", ""),
    "text for a section": (lambda row: row["rubric"].update(spatial_rubric="x"), "malformed", ""),
    "empty prompt": (lambda row: row.update(prompt=[]), "malformed", ""),
    "empty rubric": (lambda row: row.update(rubric={}), "malformed", ""),
    "list for a rubric": (lambda row: row.update(rubric=["a closed ring"]), "malformed", ""),
    "number for a rubric": (lambda row: row.update(rubric="3"), "malformed", ""),
    "unknown difficulty": (lambda row: row.update(difficulty="simple"), "unknown-difficulty", ""),
    "hits no list": (lambda row: row.update(must_hit="closed ring, dense"), "malformed", ""),
    "rubric no JSON": (lambda row: row.update(rubric="{cut"), "malformed", "{cut"),
    "repeated": (lambda row: row["must_avoid"].append("Small clusters"), "duplicate", "Small clusters"),
    "same id": (lambda row: row.update(id="Edge-Ring-0-spatial"), "duplicate-id", ""),
    "nothing to hit": (lambda row: row.update(must_hit=[]), "not-applicable", ""),
    "no reference": (lambda row: row.update(reference_answer=None), "no-reference", ""),
    "low reference": (
        lambda row: row.update(must_hit=["closed ring", "thin", "unbroken"]),
        "low-reference",
        "thin",
    ),
    "long phrase": (
        lambda row: row["must_avoid"].append("dies that fail " * 5),
        "long-phrase",
        "dies that fail " * 5,
    ),
    "comma list": (
        lambda row: row.update(
            must_hit=["closed ring", "thin rim"],
            rubric={"zone": "a closed ring, thin rim"},
            wafer_label=["x"],
        ),
        "comma-list",
        "closed ring, thin rim",
    ),
    "class named": (
        lambda row: row.update(prompt="Where is the edge ring?", wafer_label=["Edge-Ring"]),
        "class-named",
        "Edge-Ring",
    ),
    "one class of several named": (
        lambda row: row.update(prompt="Is there a scratch?", wafer_label=["Center+Scratch"]),
        "class-named",
        "Scratch",
    ),
    "everyday class asked for": (
        lambda row: row.update(prompt="What type of pattern is in the center?", wafer_label=["Center"]),
        "class-named",
        "Center",
    ),
    "everyday word": (
        lambda row: row.update(prompt="How far is it from the center?", wafer_label=["Center"]),
        "class-word",
        "Center",
    ),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_defect_is_found_with_its_row_and_phrase(name: str, tmp_path: Path) -> None:
    change, kind, phrase = PLANTS[name]
    report = linted(tmp_path, changed(change))
    row = "Edge-Ring-0-spatial" if kind == "duplicate-id" else PLANTED
    found = [finding for finding in report.findings if finding.kind == kind]
    assert (row, phrase) in [(finding.row, finding.phrase) for finding in found], report.findings
    assert report.passed == (kind in WARNINGS), report.failures
    assert all(finding.why for finding in found)


def test_every_kind_of_finding_is_planted_somewhere() -> None:
    assert {kind for _, kind, _ in PLANTS.values()} | {"empty-dimension"} == set(ERRORS) | set(WARNINGS)


def test_a_denied_avoid_inside_a_hit_is_no_conflict(tmp_path: Path) -> None:
    def deny(row: Row) -> None:
        row.update(must_hit=["no ring"], must_avoid=["ring"], reference_answer="There is no ring.")

    assert not linted(tmp_path, changed(deny)).findings


def test_a_dimension_without_phrases_is_refused(tmp_path: Path) -> None:
    rows = sound_rows()
    for row in rows:
        if row["dimension"] == "root_cause":
            row["must_hit"] = []
    report = linted(tmp_path, rows)
    assert not report.passed and report.not_applicable == 24 and report.counts["empty-dimension"] == 1
    assert report.dimensions["root_cause"].reference.not_applicable == 24
    assert report.dimensions["root_cause"].reference.value is None


def test_references_that_score_low_are_refused(tmp_path: Path) -> None:
    rows = sound_rows()
    for row in rows[::3]:
        row["reference_answer"] = "Dies fail in places."
    report = linted(tmp_path, rows)
    assert any(f.startswith("reference answers earn 0.00 in spatial") for f in report.failures)


def test_a_constant_answer_is_refused(tmp_path: Path) -> None:
    rows = sound_rows()
    for row in rows:
        if row["dimension"] == "spatial" and not row["id"].startswith("Loc"):
            row.update(must_hit=["edge zone"], must_avoid=[], reference_answer="It is the edge zone.")
    report = linted(tmp_path, rows)
    figures = report.dimensions["spatial"]
    assert figures.constant is not None and figures.constant > 0.85 and "edge zone" in figures.best_constant
    assert figures.wrong_class is not None and figures.wrong_class > 0.6
    assert any(failure.startswith("constant answers earn") for failure in report.failures)
    assert any(failure.startswith("wrong-class answers earn") for failure in report.failures)


def test_stuffing_is_refused_where_nothing_must_be_avoided(tmp_path: Path) -> None:
    rows = [row | {"must_avoid": []} for row in sound_rows()]
    report = linted(tmp_path, rows)
    assert report.dimensions["morphology"].stuffed == 1.0
    assert any(failure.startswith("stuffed answers earn 1.00") for failure in report.failures)


def test_the_optimised_formula_pays_for_stuffing_and_strict_does_not(tmp_path: Path) -> None:
    report = linted(tmp_path, sound_rows(), formula=OPTIMISED)
    assert not report.passed and report.dimensions["spatial"].stuffed == pytest.approx(0.9)
    figures = linted(tmp_path, sound_rows(), formula=STRICT).dimensions["spatial"]
    assert figures.stuffed == 0 and figures.empty == 0


def test_empty_answers_are_refused_above_the_limit(tmp_path: Path) -> None:
    report = linted(tmp_path, sound_rows(), formula=PUBLISHED, limits=Limits(attack=0.3))
    assert any(failure.startswith("empty answers earn 0.40") for failure in report.failures)


@pytest.mark.parametrize("name", ["reference", "attack"])
def test_a_limit_that_is_no_number_refuses_nothing_and_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"limit {name} is nan"):
        Limits(**{name: math.nan})


def test_constants_by_question_are_shown_where_rows_name_their_question(tmp_path: Path) -> None:
    rows = sound_rows(10)
    for n, row in enumerate(rows):
        if row["dimension"] == "morphology" and n % 2:
            row.update(
                kind="line", must_hit=["no line"], must_avoid=["rising line"], reference_answer="No line."
            )
    figures = earned(read_set(write(tmp_path / "rl.json", rows)).rows, PUBLISHED)["morphology"]
    assert figures.by_question == 1.0
    assert figures.constant is not None and figures.constant < 1


def test_a_few_rows_are_not_judged_by_constants(tmp_path: Path) -> None:
    figures = linted(tmp_path, sound_rows()[:6]).dimensions["spatial"]
    assert figures.constant is None and figures.wrong_class is None and figures.reference.value == 1.0


def test_frequent_phrases_come_first_and_once() -> None:
    rows = read_rows_of(["a ring", "a line"], ["A Rings"], ["a ring"])
    assert frequent_phrases(rows) == ["a ring", "a line"]


def read_rows_of(*lists: list[str]) -> list[object]:
    from types import SimpleNamespace

    return [SimpleNamespace(must_hit=phrases) for phrases in lists]


def test_zero_advantage_is_all_where_every_answer_earns_the_same(tmp_path: Path) -> None:
    same = [
        row | {"must_hit": ["fail"], "must_avoid": [], "reference_answer": "Dies fail."}
        for row in sound_rows()
    ]
    assert linted(tmp_path, same).zero_advantage.share == 1.0
    found = linted(tmp_path, sound_rows()).zero_advantage
    # Eight draws of the own reference, or of its class, alike: (0.5 + 0.25 + 0.25 * 1/6) ** 8 = 0.15.
    assert found.share is not None and 0.05 < found.share < 0.3 and found.groups == 72
    assert "simulated" in found.how


def test_zero_advantage_of_sampled_completions(tmp_path: Path) -> None:
    good, bad = (f"<REASONING>x</REASONING><SOLUTION>{a}</SOLUTION>" for a in ("a closed ring", "a cluster"))
    groups = [
        {"id": "Edge-Ring-0-morphology", "completions": [good, bad]},
        {"id": "Edge-Ring-1-morphology", "completions": [good, good]},
    ]
    path = tmp_path / "sampled.jsonl"
    path.write_text("\n".join(json.dumps(group) for group in groups))
    found = linted(tmp_path, sound_rows(), completions=path).zero_advantage
    assert found.share == 0.5 and found.groups == 2 and "sampled" in found.how

    path.write_text(json.dumps({"id": "nobody", "completions": [good, bad]}))
    with pytest.raises(DatasetError, match="is of row 'nobody', which the rubric set does not have"):
        linted(tmp_path, sound_rows(), completions=path)
    path.write_text(json.dumps({"id": "Edge-Ring-0-morphology", "completions": [good]}))
    with pytest.raises(DatasetError, match="has 1 completions; a group has two or more"):
        linted(tmp_path, sound_rows(), completions=path)


def test_the_patterns_of_the_sound_set_are_apart() -> None:
    phrases = [phrase for known in PATTERNS.values() for phrase in known]
    assert len(set(phrases)) == len(phrases)
