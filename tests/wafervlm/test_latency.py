from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import wafervlm
from wafervlm.errors import UsageError
from wafervlm.latency import PARTS, measure, measure_files, summarise, time_calls, vary
from wafervlm.prediction import Prediction
from wafervlm.wafermap import WaferMap


def test_percentiles_are_numpys() -> None:
    times = np.random.default_rng(1).exponential(3, 501)
    latency = summarise(times)
    assert (latency.p50, latency.p90, latency.p99) == tuple(np.percentile(times, [50, 90, 99]))
    assert latency.minimum == times.min() <= latency.p50 <= latency.p90 <= latency.p99 <= latency.maximum
    assert latency.mean == pytest.approx(times.mean())
    assert latency.calls == 501


def test_to_dict_is_plain() -> None:
    values = summarise([1, 2, 3]).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["p50"] == 2


@pytest.mark.parametrize("times", [[], [1.0, np.nan]])
def test_nothing_to_summarise(times: list[float]) -> None:
    with pytest.raises(UsageError):
        summarise(times)


def test_warmup_is_not_counted_and_inputs_go_round() -> None:
    seen: list[int] = []
    milliseconds, results = time_calls(lambda x: seen.append(x) or -x, [1, 2, 3], calls=4, warmup=2)
    assert seen == [1, 2, 1, 2, 3, 1]
    assert results == [-1, -2, -3, -1]
    assert len(milliseconds) == 4


def test_times_what_it_says() -> None:
    milliseconds, _ = time_calls(time.sleep, [0.02, 0.001], warmup=0)
    assert milliseconds[0] >= 20
    assert milliseconds[1] >= 1


@pytest.mark.parametrize(("inputs", "calls", "warmup"), [([], None, 1), ([1], 0, 1), ([1], 1, -1)])
def test_settings_that_cannot_be_meant(inputs: list[int], calls: int | None, warmup: int) -> None:
    with pytest.raises(UsageError, match="cannot time"):
        time_calls(str, inputs, calls=calls, warmup=warmup)


def test_measures_a_model_and_its_parts(shared_toy_bundle: Path, wafers: list[WaferMap]) -> None:
    with wafervlm.load(shared_toy_bundle, threads=1) as model:
        latency = measure(model, wafers, warmup=3)
    assert set(latency) == set(PARTS)
    assert all(part.calls == len(wafers) for part in latency.values())
    parts = sum(latency[part].mean for part in ("read", "render", "run"))
    assert 0 < parts <= latency["total"].mean


def test_wafers_must_be_distinct(shared_toy_bundle: Path, wafers: list[WaferMap]) -> None:
    with wafervlm.load(shared_toy_bundle, threads=1) as model, pytest.raises(UsageError, match="same map"):
        measure(model, [wafers[0], wafers[0]])


def test_progress_is_told_between_calls() -> None:
    told: list[tuple[int, int]] = []
    time_calls(str, [1, 2, 3], warmup=1, report=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.fixture(scope="module")
def paths(wafers: list[WaferMap], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = [tmp_path_factory.mktemp("maps") / f"{number}.npy" for number in range(7)]
    for path, wafer in zip(found, wafers, strict=False):
        np.save(path, wafer.dies)
    return found


class Clock:
    """Answers in known times: 2 ms to read, 1 to render, 4 to run each wafer, and says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Path]] = []

    def predict(self, path: Path, /) -> Prediction:
        self.asked.append([path])
        return cast(Prediction, SimpleNamespace(timing_ms={"read": 2.0, "render": 1.0, "run": 4.0}))

    def predict_batch(self, some: Sequence[Path], /) -> list[Prediction]:
        found = [self.predict(path) for path in some]
        self.asked[-len(some) :] = [list(some)]
        return found


def test_files_are_timed_one_by_one_and_in_lists(paths: list[Path]) -> None:
    model = Clock()
    alone = measure_files(model, paths, warmup=0)
    assert model.asked == [[path] for path in paths]
    assert (alone["total"].calls, alone["read"].p50, alone["run"].p99) == (7, 2, 4)
    model = Clock()
    lists = measure_files(model, paths, batch=3, warmup=1)
    assert model.asked == [paths[:3], paths[3:6]], "what warms up is not asked again"
    assert (lists["total"].calls, lists["read"].p50, lists["render"].p50, lists["run"].p50) == (1, 6, 3, 12)
    with pytest.raises(UsageError, match="on 0 inputs"):
        measure_files(Clock(), paths, batch=3, warmup=2)


def test_files_take_time_to_read(shared_toy_bundle: Path, paths: list[Path]) -> None:
    with wafervlm.load(shared_toy_bundle, threads=1) as model:
        found = measure_files(model, paths, batch=2, warmup=1)
    assert set(found) == set(PARTS)
    assert 0 < found["read"].minimum < found["total"].minimum


class TestVary:
    def test_as_many_as_asked_all_distinct_and_the_same_again(self, wafers: list[WaferMap]) -> None:
        made = vary(wafers[:3], 200)
        assert len({wafer.digest for wafer in made}) == len(made) == 200
        assert [wafer.digest for wafer in vary(wafers[:3], 200)] == [wafer.digest for wafer in made]
        assert [wafer.digest for wafer in vary(wafers[:3], 200, seed=1)] != [wafer.digest for wafer in made]

    def test_they_are_wafers_like_those_they_come_from(self, wafers: list[WaferMap]) -> None:
        """The same outline, turned or mirrored, and a few dies in a hundred changed."""
        source = wafers[5].dies
        turned = [np.rot90(side, k) for side in (source, source[:, ::-1]) for k in range(4)]
        changed = []
        for wafer in vary([wafers[5]], 50, share=0.05):
            alike = [t for t in turned if t.shape == wafer.dies.shape and ((t > 0) == (wafer.dies > 0)).all()]
            changed.append(min((t != wafer.dies).sum() / (source > 0).sum() for t in alike))
        assert max(changed) < 0.2
        assert 0.02 < float(np.mean(changed)) < 0.08

    def test_too_many_of_too_small_a_map(self) -> None:
        with pytest.raises(UsageError, match="1000 distinct maps cannot be made"):
            vary([WaferMap(np.ones((3, 3), np.uint8))], 1000)
