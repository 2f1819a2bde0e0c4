"""The measurement at scale, at tiny size."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contenders import NAMES
from benchmarks.latency import LatencySettings
from benchmarks.scale import HALF_BILLION, measure
from train.nano.config import TINY


def test_random_model_is_built_exported_and_timed(tmp_path: Path) -> None:
    figures = measure(tmp_path, TINY, LatencySettings(maps=2, generate_maps=1, threads=1), group=32)
    assert set(figures["latency_ms"]) == set(NAMES)
    assert all(times["p50"] > 0 for times in figures["latency_ms"].values())
    assert figures["onnx_megabytes"]["gptq"] < figures["onnx_megabytes"]["full"]
    assert figures["parameters"] > 1e5


def test_the_shape_is_about_half_a_billion() -> None:
    shape = HALF_BILLION
    width, kv = shape.text_width, shape.text_kv_heads * shape.head_dim
    layer = width * (2 * shape.text_heads * shape.head_dim + 2 * kv) + 3 * width * shape.text_mlp
    merger = 4 * shape.vision_width * (4 * shape.vision_width + width)
    total = shape.text_layers * layer + 12 * shape.vision_layers * shape.vision_width**2 + 3 * merger
    assert 0.45e9 < total < 0.55e9
