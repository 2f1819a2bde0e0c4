"""The rule score aligned with a judge: a search for the weights and the threshold on one part of the wafers,
reported on the other. Parts are made of whole lots."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from benchmarks.assessment.rules import Phrases
from benchmarks.statistics import Floats, Ints
from train.rubrics.formula import FORMULAS, OPTIMISED, PUBLISHED, Formula
from train.rubrics.matching import match
from wafervlm.errors import MissingDependencyError

RESAMPLES = 1000
FEWEST = 8
LEAST_WEIGHT = 0.05
# Thresholds are tried in these steps, so that every answer is matched a few times and not in each trial.
FUZZY = (0.60, 1.0, 0.02)
FITTED = "fitted"


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One answer: its ``text``, the ``phrases`` by dimension, the ``judged`` score 0..1, its ``lot``."""

    text: str
    phrases: Mapping[str, Phrases]
    judged: float
    lot: int


def align(points: Sequence[Point], trials: int, seed: int) -> dict[str, Any]:
    """The formula that ranks answers most as the judge does on one half of the lots, and how it and those
    of the literature rank them on the other half: Spearman and Kendall with intervals over lots.

    Says in ``note`` alone where there are too few points for that. Raises MissingDependencyError without
    optuna.
    """
    fit, report = _halves(points, seed)
    if min(len(fit), len(report)) < FEWEST:
        return {"note": f"too few judged answers to align on: {len(fit)} and {len(report)}"}
    if not np.ptp([p.judged for p in fit]):
        return {"note": "the judge gave all answers the same score: there is no rank to align with"}
    fitted, reached = _search(fit, trials, seed)
    formulas = {**FORMULAS, FITTED: fitted}
    return {
        "fitted_on": len(fit),
        "reported_on": len(report),
        "formula": asdict(fitted),
        "spearman_where_fitted": reached,
        "formulas": {name: correlations(scores(report, one), report) for name, one in formulas.items()},
    }


def scores(points: Sequence[Point], formula: Formula) -> Floats:
    """The rule score (N,) of each point, NaN where no dimension applies."""
    found = []
    for point in points:
        counts = _counts(point, formula.fuzzy)
        whole = formula.whole({name: formula.dimension(*of) for name, of in counts.items()})
        found.append(np.nan if whole is None else whole)
    return np.array(found)


def correlations(found: Floats, points: Sequence[Point]) -> dict[str, Any]:
    """Spearman's and Kendall's rank correlation of ``found`` (N,) with the judge, with 95 % percentile
    intervals over resampled lots; None where one of the two is constant."""
    kept = np.isfinite(found)
    judged, lots = np.array([p.judged for p in points])[kept], np.array([p.lot for p in points])[kept]
    return {
        name: correlation(found[kept], judged, lots, of)
        for name, of in (("spearman", spearmanr), ("kendall", kendalltau))
    }


def correlation(
    first: Floats, second: Floats, lots: Ints, of: Callable[..., Any] = spearmanr, seed: int = 0
) -> dict[str, Any] | None:
    """The rank correlation of ``first`` and ``second`` (N,) with its interval over lots; None without one."""
    value = _rank(first, second, of)
    if value is None:
        return None
    rng, names = np.random.default_rng(seed), np.unique(lots)
    members = [np.flatnonzero(lots == name) for name in names]
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[at] for at in rng.integers(len(members), size=len(members))])
        drawn.append(_rank(first[rows], second[rows], of))
    told = [one for one in drawn if one is not None]
    low, high = np.quantile(told, [0.025, 0.975]) if told else (np.nan, np.nan)
    return {"value": value, "low": float(low), "high": float(high), "answers": len(first), "lots": len(names)}


def _rank(first: Floats, second: Floats, of: Callable[..., Any]) -> float | None:
    if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
        return None
    return float(of(first, second).statistic)


def _search(points: Sequence[Point], trials: int, seed: int) -> tuple[Formula, float]:
    optuna = _optuna()
    judged = np.array([p.judged for p in points])

    def reached(trial: Any) -> float:
        found = scores(points, _formula(_suggest(trial)))
        kept = np.isfinite(found)
        value = _rank(found[kept], judged[kept], spearmanr)
        return -1.0 if value is None else value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    # What is published is where the search begins, its threshold to the nearest step.
    for known in (PUBLISHED, OPTIMISED):
        study.enqueue_trial({"hit": known.hit, "fuzzy": _step(known.fuzzy), **known.weights})
    study.optimize(reached, n_trials=trials)
    return _formula(study.best_params), float(study.best_value)


def _step(threshold: float | None) -> float:
    low, high, step = FUZZY
    return high if threshold is None else low + step * round((threshold - low) / step)


def _suggest(trial: Any) -> dict[str, float]:
    low, high, step = FUZZY
    return {
        "hit": trial.suggest_float("hit", 0.0, 1.0),
        "fuzzy": trial.suggest_float("fuzzy", low, high, step=step),
        **{name: trial.suggest_float(name, LEAST_WEIGHT, 1.0) for name in Formula().weights},
    }


def _formula(found: Mapping[str, float]) -> Formula:
    spatial, morphology, root_cause = (found[name] for name in Formula().weights)
    total = spatial + morphology + root_cause
    return Formula(
        hit=found["hit"],
        avoid=1 - found["hit"],
        fuzzy=None if found["fuzzy"] >= FUZZY[1] else round(found["fuzzy"], 2),
        spatial=spatial / total,
        morphology=morphology / total,
        root_cause=root_cause / total,
    )


def fitted_lots(points: Iterable[Point], seed: int) -> set[int]:
    """The lots of ``points`` that ``align`` fits on; on the others it reports."""
    lots = np.unique([p.lot for p in points])
    return set(np.random.default_rng([seed, 14]).permutation(lots)[: len(lots) // 2].tolist())


def _halves(points: Sequence[Point], seed: int) -> tuple[list[Point], list[Point]]:
    first = fitted_lots(points, seed)
    return [p for p in points if p.lot in first], [p for p in points if p.lot not in first]


@functools.lru_cache(maxsize=1 << 18)
def _matched(text: str, phrases: Phrases, fuzzy: float | None) -> tuple[int, int, int]:
    found = match(text, phrases.must_hit, phrases.must_avoid, fuzzy)
    return len(found.hits), len(found.hits) + len(found.missed), len(found.avoided)


def _counts(point: Point, fuzzy: float | None) -> dict[str, tuple[int, int, int]]:
    return {name: _matched(point.text, phrases, fuzzy) for name, phrases in point.phrases.items()}


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingDependencyError(
            "aligning the rule score with a judge needs optuna: pip install optuna"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
