"""A runtime that is opened at its first run, once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from wafervlm.bundle import open_bundle
from wafervlm.errors import ClosedError, ProviderError
from wafervlm.render import render
from wafervlm.runtimes import Runtime, open_runtime
from wafervlm.runtimes.deferred import DeferredRuntime
from wafervlm.wafermap import WaferMap


def test_it_is_opened_once_and_answers_as_the_runtime_does(
    shared_toy_bundle: Path, wafers: list[WaferMap]
) -> None:
    bundle = open_bundle(shared_toy_bundle)
    opened: list[Runtime] = []

    def opener() -> Runtime:
        time.sleep(0.05)
        opened.append(open_runtime("onnx", bundle, threads=1))
        return opened[-1]

    runtime = DeferredRuntime(opener)
    images = np.stack([render(wafer, bundle.manifest.task.render) for wafer in wafers[:4]])
    assert not opened
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: runtime.run(images), range(4)))
    assert len(opened) == 1
    for scores in answers:
        np.testing.assert_array_equal(scores, opened[0].run(images))
    runtime.close()
    runtime.close()
    for closed in (runtime, opened[0]):
        with pytest.raises(ClosedError):
            closed.run(images)


def test_what_opening_raises_comes_at_each_run() -> None:
    def opener() -> Runtime:
        raise ProviderError("there is no GPU here")

    runtime = DeferredRuntime(opener)
    for _ in range(2):
        with pytest.raises(ProviderError, match="there is no GPU here"):
            runtime.run(np.zeros((1, 2, 2, 3), np.uint8))
    runtime.close()
