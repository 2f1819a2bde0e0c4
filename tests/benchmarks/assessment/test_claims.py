from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.assessment.cases import Cases, planted_cases
from benchmarks.assessment.claims import check_answers, claim_figures, ratios
from benchmarks.assessment.struck import struck_figures
from benchmarks.statistics import mean_by_lot, ratio_by_lot, ratio_difference_by_lot
from train.vqa.statements import altered
from train.vqa.write import write
from wafervlm.claims import Claim, Verdict, check, extract, tell
from wafervlm.geometry import measure


def perfect(cases: Cases) -> list[str]:
    """What the training texts say of these maps."""
    rng = np.random.default_rng(0)
    return [write(case.wafer.dies, case.label, rng, "full")[1] for case in cases.cases]


def corrupted(cases: Cases, seed: int) -> tuple[list[str], int, int]:
    """True statements of which some were made false: the texts, how many claims, how many false."""
    rng, texts, claims, false = np.random.default_rng(seed), [], 0, 0
    for case in cases.cases:
        said = []
        for claim in case.ruler.statements:
            wrong = _false(claim, case.wafer.dies) if rng.random() < 0.3 else None
            if wrong in said:
                continue
            said.append(wrong or claim)
            false += wrong is not None
        claims += len(said)
        texts.append(tell(said))
    return texts, claims, false


def _false(claim: Claim, dies: np.ndarray) -> Claim | None:
    found = check(altered(claim), measure(dies))
    return next((replace(item.claim) for item in found if item.contradicted), None)


def test_a_perfect_subject_gets_all_figures(real: Cases) -> None:
    figures = claim_figures(check_answers(perfect(real), real), real)
    assert figures["precision"]["value"] == 1 and figures["contradiction_rate"]["value"] == 0
    assert figures["zone_right"]["value"] == 1
    assert figures["clock_right"]["value"] == 1 and figures["edge_loc_right"]["value"] == 1
    assert figures["clock_for_ring"]["value"] == 0 and figures["clock_without_place"]["value"] == 0
    assert figures["claims_per_answer"]["value"] >= 4 and figures["without_a_claim"] == 0
    # A description says less than is worth saying: seven claims at the most.
    assert 0.7 < figures["recall"]["value"] < 1
    told = [tell(case.ruler.statements) for case in real.cases]
    assert claim_figures(check_answers(told, real), real)["recall"]["value"] == 1
    # Nothing was seen to be wrong on 18 lots, which is not certainty.
    assert figures["precision"]["low"] < 1 and figures["precision"]["lots"] == 18


def test_the_precision_of_a_corrupted_subject_is_its_share_of_true_claims(real: Cases) -> None:
    texts, claims, false = corrupted(real, 1)
    figures = claim_figures(check_answers(texts, real), real)
    assert false > 60
    assert figures["precision"]["value"] == pytest.approx(1 - false / claims)
    assert figures["contradiction_rate"]["value"] == pytest.approx(false / claims)
    assert figures["precision"]["low"] < 1 - false / claims < figures["precision"]["high"]
    by_kind = figures["by_kind"].values()
    assert sum(kind["contradicted"] for kind in by_kind) == false
    assert sum(part["contradicted"] for part in figures["by_dimension"].values()) == false
    assert sum(part["contradicted"] for part in figures["by_label"].values()) == false
    struck = struck_figures(texts, real)
    assert struck["contradictions_left"] == 0
    assert struck["claims_before"] == claims
    assert struck["kept"]["value"] == pytest.approx(1 - false / claims)
    assert struck["sound_kept"]["value"] == 1


def test_saying_it_again_makes_nothing_truer(real: Cases) -> None:
    texts, *_ = corrupted(real, 1)
    again = [f"{text}\n{text}" for text in texts]
    assert claim_figures(check_answers(again, real), real) == claim_figures(check_answers(texts, real), real)


def test_a_subject_that_says_nothing_is_not_called_precise(real: Cases) -> None:
    figures = claim_figures(check_answers(["I cannot say."] * len(real), real), real)
    assert figures["precision"] is None
    assert figures["claims_per_answer"]["value"] == figures["zone_right"]["value"] == 0
    assert figures["without_a_claim"] == len(real)


def test_a_clock_position_for_all_is_seen_where_there_is_none(real: Cases) -> None:
    checks = check_answers(["The pattern lies at 3 o'clock."] * len(real), real)
    figures = claim_figures(checks, real)
    assert figures["clock_for_ring"]["value"] == figures["clock_without_place"]["value"] == 1
    hours = [case.ruler.hour for case in real.cases if case.label == "Edge-Loc"]
    right = [hour in (2, 3, 4) for hour in hours if hour is not None]
    assert figures["clock_right"]["value"] == pytest.approx(np.mean(right))


def test_planted_wafers_are_judged_by_their_truth() -> None:
    planted = planted_cases(22, seed=2)
    told = [tell(case.ruler.statements) for case in planted.cases]
    figures = claim_figures(check_answers(told, planted), planted)
    assert figures["precision"]["value"] == 1 and figures["recall"]["value"] > 0.95
    by_geometry = claim_figures(check_answers(perfect(planted), planted), planted)
    assert by_geometry["precision"]["value"] > 0.95
    turned = [text.replace("edge zone", "center zone") for text in told]
    assert claim_figures(check_answers(turned, planted), planted)["precision"]["value"] < 0.97


def test_recall_is_of_what_is_said_rightly(real: Cases) -> None:
    case = Cases("one", real.cases[:1], np.zeros(1, dtype=np.int64))
    worth = case.cases[0].ruler.statements
    half = tell(worth[: len(worth) // 2])
    found = ratios(check_answers([half], case), case)["recall"].interval(case.lots)
    assert found is not None
    assert found.value == pytest.approx(len(set(worth[: len(worth) // 2])) / len(worth), abs=0.13)


def test_a_ratio_over_lots_is_the_mean_where_each_wafer_counts_once() -> None:
    rng = np.random.default_rng(3)
    values, lots = rng.random(60), np.arange(60) // 6
    found = ratio_by_lot(values, np.ones(60), lots)
    assert found == mean_by_lot(values, lots)
    weights = rng.integers(0, 4, 60).astype(float)
    ratio = ratio_by_lot(values * weights, weights, lots)
    assert ratio is not None
    assert ratio.value == pytest.approx(np.average(values, weights=weights))
    assert ratio.wafers == np.count_nonzero(weights)
    assert _resampled(values * weights, weights, lots) == pytest.approx((ratio.low, ratio.high), abs=0.02)
    assert ratio_by_lot(values, np.zeros(60), lots) is None


def test_a_difference_is_taken_on_the_same_lots() -> None:
    rng = np.random.default_rng(4)
    values, lots = rng.random(80), np.arange(80) // 8
    same = ratio_difference_by_lot((values, np.ones(80)), (values + 0.1, np.ones(80)), lots)
    assert same is not None
    assert (same.value, same.low, same.high) == pytest.approx((0.1, 0.1, 0.1))


def _resampled(above: np.ndarray, below: np.ndarray, lots: np.ndarray) -> Sequence[float]:
    """The interval as the formula says it, lot by lot."""
    rng, found = np.random.default_rng(9), []
    members = [np.flatnonzero(lots == lot) for lot in np.unique(lots)]
    for _ in range(2000):
        rows = np.concatenate([members[at] for at in rng.integers(len(members), size=len(members))])
        found.append(above[rows].sum() / below[rows].sum())
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def test_verdicts_are_those_of_the_station(real: Cases) -> None:
    text = "The failing dies lie mostly in the edge zone. There is no ring."
    for case, found in zip(real.cases, check_answers([text] * len(real), real), strict=True):
        wanted = [item.verdict for item in check(extract(text), measure(case.wafer.dies))]
        assert [item.verdict for item in found] == wanted
    assert Verdict.SUPPORTED in wanted or Verdict.CONTRADICTED in wanted
