from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import wafervlm
from wafervlm.errors import UsageError
from wafervlm.latency import PARTS, measure, summarise, time_calls
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
