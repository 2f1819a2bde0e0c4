"""Bundles on the CPU's runtime: the rows that a GPU's would be."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from benchmarks.gpu.bundles import place_bundle
from benchmarks.gpu.device import Device
from benchmarks.gpu.run import run
from benchmarks.gpu.settings import Settings
from wafervlm.bundle import EMBEDDED, open_bundle


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
