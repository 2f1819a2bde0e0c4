"""Judging is tested against a scripted judge on loopback, which is no language model."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.assessment import alignment
from benchmarks.assessment.alignment import FITTED, Point, align, correlation, fitted_lots, scores
from benchmarks.assessment.cases import Cases
from benchmarks.assessment.config import JudgeConfig
from benchmarks.assessment.judge import PROMPTS, read_judgements, requests
from benchmarks.assessment.judged import _ranks, judge_all
from benchmarks.assessment.rules import Phrases, Rubrics, write_rubrics
from benchmarks.assessment.tables_of_judge import judge_summary, judge_tables, judge_values
from tests.train.vqa.conftest import ScriptedModel, completion
from train.rubrics.formula import PUBLISHED, Formula
from train.vqa.causes import default_causes
from train.vqa.endpoint import GIVE_UP, Endpoint, EndpointSettings
from train.vqa.replies import ReplyCache
from wafervlm.errors import ProviderError

GOOD, BAD = "a right answer", "a wrong answer"


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "RESAMPLES", 100)


def settings(url: str, **values: Any) -> EndpointSettings:
    return EndpointSettings(url, "scripted", **{"retries": 0, "timeout": 5.0, "workers": 2, **values})


def shown(body: dict[str, Any]) -> dict[str, str]:
    """The answers that a request shows, by letter."""
    text = str(body["messages"][-1]["content"])
    return dict(re.findall(r"Answer ([A-Z]):\n(.*?)(?=\n\nAnswer [A-Z]:|\Z)", text, re.DOTALL))


def points(value: float) -> dict[str, float]:
    return {"spatial": value, "morphology": value, "root_cause": value}


def both(spatial: Any) -> str:
    """Two answers' scores, of which that of one dimension is ``spatial``."""
    return json.dumps({letter: {**points(1), "spatial": spatial} for letter in "AB"})


def honest(body: dict[str, Any]) -> tuple[int, Any]:
    """Nine for the right answer, two for the other."""
    given = {letter: points(9 if GOOD in text else 2) for letter, text in shown(body).items()}
    return completion(f"```json\n{json.dumps(given)}\n```")


def asked(count: int = 4, repeats: int = 2) -> list[Any]:
    descriptions = {
        "good": [f"{GOOD} {n}" for n in range(count)],
        "bad": [f"{BAD} {n}" for n in range(count)],
    }
    facts = [f"facts {n}" for n in range(count)]
    return requests(descriptions, facts, range(count), repeats, seed=0)


def judged(model: ScriptedModel, cache: Path, wanted: list[Any], **values: Any) -> Any:
    return read_judgements(Endpoint(settings(model.url, **values), ReplyCache(cache)), wanted, 2)


def test_scores_find_their_subject_in_any_order(scripted: ScriptedModel, tmp_path: Path) -> None:
    scripted.script = honest
    wanted = asked(8)
    assert {one.order for one in wanted} == {("good", "bad"), ("bad", "good")}
    found = judged(scripted, tmp_path / "kept", wanted)
    assert len(scripted.asked) == 8 * 2 * len(PROMPTS) == found.requests
    for (_, name, _), readings in found.readings.items():
        assert readings == [points(0.9 if name == "good" else 0.2)] * 2
    assert found.kept == 2 * found.requests and not found.excluded
    assert found.prompt_tokens == 100 * found.requests
    again = judged(scripted, tmp_path / "kept", wanted)
    assert again.readings == found.readings and again.prompt_tokens == 0
    assert again.from_cache == len(scripted.asked) == found.requests


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion(None, refusal="No."), "refused"),
        (completion("I'm sorry, I can't."), "refused"),
        (completion('{"A": {"spatial"', "length"), "cut off"),
        (completion(" "), "empty"),
        (completion("Both are fine."), "nonsense"),
        (completion('{"A": '), "nonsense"),
        (completion('{"A": 7, "B": 8}'), "lacks a score"),
        (completion(json.dumps({"A": points(11), "B": points(-1)})), "a score out of range"),
        (completion(both(float("nan"))), "a score out of range"),
        (completion(both(10**400)), "a score out of range"),
        (completion(both("high")), "a score that is no number"),
        (completion(both(True)), "a score that is no number"),
        ((200, {"choices": []}), "nonsense"),
        ((500, {"error": "boom"}), "status 500"),
    ],
)
def test_what_is_no_score_is_left_out_by_name(
    scripted: ScriptedModel, tmp_path: Path, answer: tuple[int, Any], reason: str
) -> None:
    scripted.script = lambda body: answer
    found = judged(scripted, tmp_path / "kept", asked(1, 1))
    assert found.kept == 0 and dict(found.excluded) == {reason: 2 * len(PROMPTS)}


def test_one_bad_score_costs_that_answer_alone(scripted: ScriptedModel, tmp_path: Path) -> None:
    scripted.script = lambda body: completion(json.dumps({"A": points(8), "B": points(80)}))
    found = judged(scripted, tmp_path / "kept", asked(3, 1))
    assert found.kept == found.excluded["a score out of range"] == 3 * len(PROMPTS)
    assert list(found.by_letter) == ["A"]


def test_a_judge_that_is_down_is_not_asked_for_ever(scripted: ScriptedModel, tmp_path: Path) -> None:
    scripted.close()
    found = judged(scripted, tmp_path / "kept", asked(20, 1))
    assert found.kept == 0 and found.excluded["not asked, the endpoint is down"] > 0
    assert found.excluded["cannot be reached"] >= GIVE_UP
    assert found.excluded.total() == 2 * 20 * len(PROMPTS)
    assert found.missing == found.requests == 20 * len(PROMPTS)
    scripted.close = lambda: None  # type: ignore[method-assign]


def test_a_judge_that_is_too_slow_is_left(scripted: ScriptedModel, tmp_path: Path) -> None:
    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        if "facts 0" in body["messages"][-1]["content"]:
            time.sleep(0.8)
        return honest(body)

    scripted.script = slow
    found = judged(scripted, tmp_path / "kept", asked(3, 1), timeout=0.4)
    assert dict(found.excluded) == {"too slow": 2 * len(PROMPTS)} and found.missing == len(PROMPTS)
    assert found.kept == 2 * 2 * len(PROMPTS)
    scripted.script = honest
    again = judged(scripted, tmp_path / "kept", asked(3, 1), timeout=5)
    assert (again.kept, again.missing, again.from_cache) == (2 * found.requests, 0, 2 * len(PROMPTS))


def test_requests_at_fault_do_not_mean_that_the_judge_is_down(
    scripted: ScriptedModel, tmp_path: Path
) -> None:
    judged(scripted, tmp_path / "kept", asked(1, 1))
    scripted.script = lambda body: (400, {"error": {"message": "too long"}})
    found = judged(scripted, tmp_path / "kept", asked(GIVE_UP, 1))
    assert found.excluded["status 400"] > GIVE_UP and found.missing == 0


def test_a_judge_that_takes_no_request_is_an_error(scripted: ScriptedModel, tmp_path: Path) -> None:
    scripted.script = lambda body: (400, {"error": {"message": "no such option"}})
    with pytest.raises(ProviderError, match="refused .* and took none.*no such option"):
        judged(scripted, tmp_path / "kept", asked(GIVE_UP, 1))


def made_points(count: int, truth: Formula, noise: float, seed: int = 0) -> list[Point]:
    """Answers that say some of their phrases and some forbidden ones, judged as ``truth`` has it."""
    rng, found = np.random.default_rng(seed), []
    names = ("spatial", "morphology", "root_cause")
    for number in range(count):
        phrases = {
            name: Phrases(
                tuple(f"{name} good{letter}" for letter in "abcd"),
                tuple(f"{name} wrong{letter}" for letter in "abcd"),
            )
            for name in names
        }
        said = [one for p in phrases.values() for one in p.must_hit if rng.random() < rng.random()]
        said += [one for p in phrases.values() for one in p.must_avoid if rng.random() < 0.35]
        point = Point(". ".join(said), phrases, 0.0, number // 4)
        value = float(scores([point], truth)[0]) + rng.normal(0, noise)
        found.append(Point(point.text, phrases, value, point.lot))
    return found


def test_alignment_finds_what_the_judge_weighs_and_holds_on_other_lots() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    truth = Formula(hit=0.15, avoid=0.85, spatial=0.05, morphology=0.05, root_cause=0.9)
    found = align(made_points(160, truth, 0.02), trials=60, seed=0)
    fitted, published = (found["formulas"][name]["spearman"] for name in (FITTED, "published"))
    assert fitted["value"] > 0.9 > published["value"]
    assert fitted["low"] > published["high"]
    assert found["formulas"][FITTED]["kendall"]["value"] < fitted["value"]
    assert found["formula"]["root_cause"] > 0.6 and found["formula"]["avoid"] > 0.5
    assert found["fitted_on"] + found["reported_on"] == 160


def test_the_fitted_formula_is_ranked_on_lots_that_it_was_not_fitted_on() -> None:
    points = made_points(40, PUBLISHED, 0.0)
    fitted_on = fitted_lots(points, 0)
    held = [point for point in points if point.lot not in fitted_on]
    assert 0 < len(held) < len(points)
    # On the lots that it was fitted on the judge says the contrary.
    against = [p if p.lot not in fitted_on else replace(p, judged=-p.judged) for p in points]
    assert _ranks(PUBLISHED, against, fitted_on)["value"] == pytest.approx(1.0)  # type: ignore[index]
    assert _ranks(PUBLISHED, against, set())["value"] < 0.9  # type: ignore[index]
    assert _ranks(PUBLISHED, against, {point.lot for point in points}) is None


def test_alignment_says_where_it_cannot_be() -> None:
    few = align(made_points(9, PUBLISHED, 0.0), trials=2, seed=0)
    assert "too few judged answers" in few["note"]
    same = [Point(p.text, p.phrases, 0.5, p.lot) for p in made_points(60, PUBLISHED, 0.0)]
    assert "same score" in align(same, trials=2, seed=0)["note"]


def test_a_rank_correlation_has_its_interval() -> None:
    rng = np.random.default_rng(0)
    first, lots = rng.random(60), np.arange(60) // 3
    found = correlation(first, first + rng.normal(0, 0.2, 60), lots)
    assert found is not None and found["low"] < found["value"] < found["high"] and found["lots"] == 20
    assert correlation(first, np.zeros(60), lots) is None


def test_the_judge_sees_the_better_subject_and_the_report_says_so(
    scripted: ScriptedModel, real: Cases, tmp_path: Path
) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    rubrics: Rubrics = write_rubrics(real, default_causes(), 0, seed=0)
    right = list(rubrics.references)
    descriptions = {"right": right, "turned": [*right[30:], *right[:30]], "silent": [""] * len(real)}
    known = set(right)

    def script(body: dict[str, Any]) -> tuple[int, Any]:
        facts = str(body["messages"][-1]["content"]).split("Measured facts:\n")[1].split("\n\nAnswer A:")[0]
        strict = "yield engineer" in body["messages"][0]["content"]
        given = {}
        for letter, text in shown(body).items():
            value = 10 if text == facts else 5 if text in known else 0
            given[letter] = points(max(0, value - strict))
        return completion(json.dumps(given))

    scripted.script = script
    config = JudgeConfig(settings(scripted.url), maps=30, repeats=1, prices=(1.0, 2.0), trials=15)
    found = judge_all(config, descriptions, real, rubrics, ReplyCache(tmp_path / "kept"), seed=0)
    first, second = (found["subjects"][path.stem] for path in PROMPTS)
    assert first["right"]["whole"]["value"] == 1 > first["turned"]["whole"]["value"] >= 0.5
    assert second["right"]["whole"]["value"] == pytest.approx(0.9) and first["silent"]["whole"]["value"] == 0
    assert found["cost"] == pytest.approx((100 + 2 * 20) * 60 / 1e6)
    assert found["alignment"]["formulas"]["strict"]["spearman"]["value"] > 0.8
    assert found["claims"]["value"] > 0.5
    sensitivity = found["prompt_sensitivity"]
    assert sensitivity["answers"] == 90 and sensitivity["spearman"]["value"] > 0.95
    assert -0.1 < sensitivity["mean_difference"] < 0
    printed, strict = dict(judge_summary(found).rows), found["alignment"]["formulas"]["strict"]["spearman"]
    assert printed["scores kept"] == "180 of 180" and printed["cost of this run"] == "0.0084"
    assert printed["Spearman with the judge, strict rule score"].startswith(f"{strict['value']:.3f} [")
    assert judge_values(found)["spearman"]["strict"] == round(strict["value"], 4)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion(None, refusal="No."), "refused"),
        (completion("All are fine."), "nonsense"),
        ((503, {"error": "down"}), "not asked, the endpoint is down"),
    ],
)
def test_a_judge_without_one_score_is_reported(
    scripted: ScriptedModel, real: Cases, tmp_path: Path, answer: tuple[int, Any], reason: str
) -> None:
    scripted.script = lambda body: answer
    rubrics = write_rubrics(real, default_causes(), 0, seed=0)
    config = JudgeConfig(settings(scripted.url), maps=8, repeats=1, trials=2)
    descriptions = {"one": list(rubrics.references), "two": [""] * len(real)}
    found = judge_all(config, descriptions, real, rubrics, ReplyCache(tmp_path / "kept"), seed=0)
    assert found["kept"] == 0 and sum(found["excluded"].values()) == 2 * found["requests"] == 32
    assert found["excluded"][reason] > 0
    assert found["missing"] == (found["requests"] if answer[0] == 503 else 0)
    assert found["subjects"] == {path.stem: {"one": None, "two": None} for path in PROMPTS}
    assert found["alignment"] == {"note": "too few judged answers to align on: 0 and 0"}
    assert found["claims"] is None and found["prompt_sensitivity"]["answers"] == 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert next(iter(judge_tables(found))).title == "Scores of the judge"
    printed = dict(judge_summary(found).rows)
    assert printed["scores kept"] == "0 of 32" and printed[f"left out: {reason}"]
    assert printed["Spearman with the judge"].startswith("too few judged answers")
    assert judge_values(found)["spearman"] is None
