"""Bundles on the runtimes that are here: ONNX Runtime on CPU and GPU, and TensorRT engines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device import Device
from benchmarks.gpu.node_placement import node_placement
from benchmarks.gpu.nvml import Telemetry
from benchmarks.gpu.parity import parity
from train.synthetic import wafers
from wafervlm.bundle import open_bundle
from wafervlm.golden import read_golden
from wafervlm.latency import summarise, time_calls
from wafervlm.loading import load
from wafervlm.render import RgbImage, render
from wafervlm.task import WAFER_DEFECTS, Task

LEAST_ENERGY_SECONDS = 2.0


def bundle_steps(
    bundles: Sequence[Path], engines: Sequence[Path], device: Device
) -> Iterator[tuple[str, Path, Path | None]]:
    """(runtime, bundle, engine) of everything to be timed: ONNX Runtime on the device that is measured, and
    the engine where one is given."""
    for place, bundle in enumerate(bundles):
        yield ("onnx-cuda" if device.is_cuda else "onnx"), bundle, None
        if engines:
            yield "tensorrt", bundle, engines[place]


def time_bundle(
    runtime: str,
    bundle: Path,
    engine: Path | None,
    *,
    batch: int,
    maps: int,
    seconds: float,
    telemetry: Telemetry,
) -> dict[str, Any]:
    """Time one bundle on distinct synthetic wafers, from images on the host to scores on the host, and
    compare it with its own checkpoint's scores of the golden maps.

    Raises what opening a bundle or an engine raises.
    """
    started = time.perf_counter()
    with load(bundle, runtime=runtime, engine=engine) as model:
        opened_in = time.perf_counter() - started
        task, graph = model.task, model.manifest.graph
        golden = read_golden(open_bundle(bundle))
        images = np.stack([render(wafer, task.render) for wafer in golden.maps])
        scores = model.label_log_probs(images).astype(np.float64)
        drawn = _images(task, maps)
        inputs = [np.stack([drawn[(i + j) % maps] for j in range(batch)]) for i in range(maps)]
        first, _ = time_calls(model.label_log_probs, inputs, calls=3, warmup=3)
        count = int(np.clip(seconds * 1e3 / max(min(first), 1e-3), 10, 300))
        times, _ = time_calls(model.label_log_probs, inputs, calls=count, warmup=0)
        calls = [0]

        def work() -> None:
            end = time.perf_counter() + LEAST_ENERGY_SECONDS
            while time.perf_counter() < end:
                model.label_log_probs(inputs[calls[0] % maps])
                calls[0] += 1

        used = telemetry.energy_of(work)
    summary = summarise(times)
    return {
        "about": f"bundle {model.manifest.name}, {graph.precision}, on {model.runtime}; host to host",
        "precision": graph.precision,
        "captured": False,
        "open_seconds": opened_in,
        "latency_ms": summary.to_dict(),
        "per_map_ms": summary.p50 / batch,
        "parity": parity(golden.reference.astype(np.float64), scores),
        "parity_reference": "the checkpoint's scores of the bundle's golden maps",
        "energy": {
            "joules_per_map": None if used.joules is None else used.joules / max(calls[0] * batch, 1),
            "reason": used.reason,
        },
    }


def place_bundle(bundle: Path, device: Device) -> dict[str, Any]:
    """Where ONNX Runtime runs the nodes of one bundle on one image."""
    opened = open_bundle(bundle)
    image = _images(opened.manifest.task, 1)[0]
    return node_placement(opened, image[None], device.torch.type)


def _images(task: Task, maps: int) -> list[RgbImage]:
    labels = [WAFER_DEFECTS.labels[i % len(WAFER_DEFECTS.labels)] for i in range(maps)]
    return [render(wafer, task.render) for wafer in wafers(labels, seed=5)]
