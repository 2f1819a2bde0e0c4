"""Bundles on the CPU's runtime: the rows that a GPU's would be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.gpu.bundles import place_bundle
from benchmarks.gpu.device import Device
from benchmarks.gpu.node_placement import node_placement
from benchmarks.gpu.run import run
from benchmarks.gpu.settings import Settings
from wafervlm.bundle import EMBEDDED, open_bundle
from wafervlm.errors import ProviderError


def test_every_node_is_placed_and_quantized_products_are_fused() -> None:
    bundle = open_bundle(EMBEDDED)
    found = place_bundle(EMBEDDED, Device("cpu"))["providers"]
    assert found.keys() == {"CPUExecutionProvider"}
    cpu = found["CPUExecutionProvider"]
    assert cpu["nodes"] == sum(cpu["operators"].values()) and cpu["host_ms"] > 0
    graph = onnx.load_model_from_string(bundle.read(bundle.manifest.graph.file))
    stored = [node.op_type for node in graph.graph.node]
    # What the graph writes as dequantization and product is one kernel, and no dequantization is left.
    assert 0 < cpu["operators"]["MatMulNBits"] <= stored.count("DequantizeLinear")
    assert cpu["operators"].get("DequantizeLinear", 0) == 0
    assert cpu["operators"]["Attention"] == stored.count("Attention")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_a_provider_that_is_not_there_places_nothing() -> None:
    with pytest.raises(ProviderError, match="CUDAExecutionProvider"):
        node_placement(open_bundle(EMBEDDED), np.zeros((1, 112, 112, 3), np.uint8), "cuda")


def test_a_bundle_has_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    options = {"device": "cpu", "dtype": "float32", "batches": (1,), "maps": 2, "row_seconds": 0.01}
    run(Settings(shapes=(), bundles=(EMBEDDED,), **options), out)  # type: ignore[arg-type]
    rows = {row["key"]: row for row in json.loads(out.read_text())["rows"]}
    name = EMBEDDED.name
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows.keys() == {f"{name}/placement", f"{name}/onnx/1"}
    timed = rows[f"{name}/onnx/1"]
    assert timed["latency_ms"]["p50"] > 0 and timed["parity"]["label_agreement"] == pytest.approx(1.0)
