"""What the judge's scores come to: of each subject, against the rules and the claims, and by prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assessment.alignment import (
    FITTED,
    Point,
    align,
    correlation,
    correlations,
    fitted_lots,
    scores,
)
from benchmarks.assessment.cases import Cases
from benchmarks.assessment.config import JudgeConfig
from benchmarks.assessment.judge import (
    PROMPTS,
    Judgements,
    Reading,
    prompt_digest,
    prompt_name,
    read_judgements,
    requests,
)
from benchmarks.assessment.rules import Rubrics
from benchmarks.statistics import mean_by_lot
from train.rubrics.formula import FORMULAS, Formula
from train.vqa.endpoint import Endpoint
from train.vqa.replies import ReplyCache
from train.vqa.rows import DIMENSIONS
from wafervlm.claims import distinct

Descriptions = Mapping[str, Sequence[str]]


def judge_all(
    config: JudgeConfig,
    descriptions: Descriptions,
    cases: Cases,
    rubrics: Rubrics,
    cache: ReplyCache,
    seed: int,
) -> dict[str, Any]:
    """Have the ``descriptions`` of labelled maps judged, by subject; the figures for the report. Raises
    ProviderError, and MissingDependencyError without the openai client or optuna."""
    places = _places(len(cases), config.maps, seed)
    asked = requests(descriptions, rubrics.references, places, config.repeats, seed)
    found = read_judgements(Endpoint(config.endpoint, cache), asked, config.endpoint.workers)
    first = prompt_name(PROMPTS[0])
    points = _points(found, first, descriptions, cases, rubrics)
    aligned = align(list(points.values()), config.trials, seed)
    return {
        "model": config.endpoint.model,
        "maps": len(places),
        "repeats": config.repeats,
        "prompts": {prompt_name(path): prompt_digest(path) for path in PROMPTS},
        **_paid(found, config),
        "subjects": {
            prompt_name(path): {name: _subject(found, path, name, cases) for name in descriptions}
            for path in PROMPTS
        },
        "between_readings": _between_readings(found),
        "by_letter": {letter: float(np.mean(values)) for letter, values in sorted(found.by_letter.items())},
        "alignment": aligned,
        "claims": _against_claims(points, cases),
        "prompt_sensitivity": _sensitivity(
            found, descriptions, cases, rubrics, aligned, fitted_lots(points.values(), seed)
        ),
    }


def _places(count: int, most: int, seed: int) -> list[int]:
    drawn = np.random.default_rng([seed, 15]).permutation(count)[:most]
    return sorted(int(place) for place in drawn)


def _paid(found: Judgements, config: JudgeConfig) -> dict[str, Any]:
    return {
        "requests": found.requests,
        "missing": found.missing,
        "from_cache": found.from_cache,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "cost": found.cost(config.prices),
        "kept": found.kept,
        "excluded": dict(found.excluded.most_common()),
    }


def _subject(found: Judgements, prompt: Path, name: str, cases: Cases) -> dict[str, Any] | None:
    """The mean scores of one subject under one prompt, 0..1, by dimension and ``whole``, their mean."""
    places = sorted(place for p, s, place in found.readings if (p, s) == (prompt_name(prompt), name))
    if not places:
        return None
    readings = [_mean(found.readings[prompt_name(prompt), name, place]) for place in places]
    lots = np.unique(cases.lots[places], return_inverse=True)[1].astype(np.int64)
    values = {dimension: [one[dimension] for one in readings] for dimension in DIMENSIONS}
    values["whole"] = [_whole(one) for one in readings]
    return {key: mean_by_lot(np.array(column), lots).to_dict() for key, column in values.items()}


def _mean(readings: Sequence[Reading]) -> Reading:
    return {name: float(np.mean([one[name] for one in readings])) for name in DIMENSIONS}


def _whole(reading: Reading) -> float:
    return sum(reading.values()) / len(reading)


def _between_readings(found: Judgements) -> float | None:
    """The mean difference of the highest and lowest reading of the same answer under the same prompt."""
    spans = [
        float(np.ptp([_whole(one) for one in readings]))
        for readings in found.readings.values()
        if len(readings) > 1
    ]
    return float(np.mean(spans)) if spans else None


def _points(
    found: Judgements, prompt: str, descriptions: Descriptions, cases: Cases, rubrics: Rubrics
) -> dict[tuple[str, int], Point]:
    """The judged answers by subject and place."""
    return {
        (name, place): Point(
            descriptions[name][place],
            rubrics.descriptions[place],
            _whole(_mean(readings)),
            int(cases.lots[place]),
        )
        for (of, name, place), readings in sorted(found.readings.items())
        if of == prompt
    }


def _against_claims(points: Mapping[tuple[str, int], Point], cases: Cases) -> dict[str, Any] | None:
    """How the judge's score ranks with the share of an answer's claims that the dies bear out."""
    shares, judged, lots = [], [], []
    for (_, place), point in points.items():
        checked = cases.cases[place].ruler.check(distinct(point.text))
        if checked:
            shares.append(sum(item.supported for item in checked) / len(checked))
            judged.append(point.judged)
            lots.append(point.lot)
    return correlation(np.array(shares), np.array(judged), np.array(lots, dtype=np.int64))


def _sensitivity(
    found: Judgements,
    descriptions: Descriptions,
    cases: Cases,
    rubrics: Rubrics,
    aligned: Mapping[str, Any],
    fitted_on: set[int],
) -> dict[str, Any]:
    """What changes with the judge's prompt: how the scores of the same answers rank and differ, and how the
    rule scores rank with each; the fitted one on other lots than those that it was ``fitted_on``."""
    names = [prompt_name(path) for path in PROMPTS]
    by_prompt = {name: _points(found, name, descriptions, cases, rubrics) for name in names}
    both = sorted(set.intersection(*(set(points) for points in by_prompt.values())))
    first, second = ([by_prompt[name][key] for key in both] for name in names[:2])
    before, after = (np.array([point.judged for point in points]) for points in (first, second))
    lots = np.array([point.lot for point in first], dtype=np.int64)
    formulas = dict(FORMULAS)
    if "formula" in aligned:
        formulas[FITTED] = Formula(**aligned["formula"])
    return {
        "answers": len(both),
        "spearman": correlation(before, after, lots) if both else None,
        "mean_difference": float((after - before).mean()) if both else None,
        "rules": {
            name: {
                prompt: _ranks(formula, points, fitted_on if name == FITTED else set())
                for prompt, points in zip(names, (first, second), strict=False)
            }
            for name, formula in formulas.items()
        },
    }


def _ranks(formula: Formula, points: Sequence[Point], without: set[int]) -> dict[str, Any] | None:
    """How ``formula`` ranks ``points`` of other lots than those ``without``, beside the judge."""
    left = [point for point in points if point.lot not in without]
    return correlations(scores(left, formula), left)["spearman"] if left else None
