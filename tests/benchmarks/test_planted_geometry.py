"""The planted wafers and what is reported on them."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import planted
from benchmarks.planted import KINDS, blank, plant
from benchmarks.planted_geometry import accuracy, main


def test_the_truth_shares_no_code_with_what_is_measured() -> None:
    tree = ast.parse(Path(planted.__file__).read_text(encoding="utf-8"))
    imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not [name for name in imported if name.split(".")[0] in ("wafervlm", "train", "benchmarks")]


@pytest.mark.parametrize("kind", KINDS)
def test_planted_dies_fail_and_noise_has_its_rate(kind: str) -> None:
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(20):
        dies, truth = plant(kind, rng, noise=0.04)
        assert dies.dtype == np.uint8 and min(dies.shape) >= 20 and max(dies.shape) <= 80
        assert dies.any(axis=1).all() and dies.any(axis=0).all()
        assert (dies[tuple(truth.dies.T)] == 2).all()
        others = dies.copy()
        others[tuple(truth.dies.T)] = 0
        if kind not in ("scatter", "full", "repeat"):
            rates.append((others == 2).sum() / max((others > 0).sum(), 1))
    if rates:
        assert np.mean(rates) == pytest.approx(0.04, abs=0.01)


def test_a_planted_ring_lies_in_its_band() -> None:
    dies, truth = plant("open ring", np.random.default_rng(1), shape=(60, 40), noise=0)
    wafer = blank(60, 40)
    radius = np.hypot(wafer.x, wafer.y)[dies == 2]
    assert np.abs(radius - truth.radius).max() <= truth.width / 2
    turns = np.degrees(np.arctan2(wafer.x, -wafer.y))[dies == 2] - truth.angle
    assert np.abs((turns + 180) % 360 - 180).min() >= (360 - truth.extent) / 2
    assert math.isclose(truth.x, wafer.x[dies == 2].mean())


def test_the_figures_are_reached_on_a_few_wafers() -> None:
    found = accuracy(220, seed=7)["all"]
    assert found["cluster found"] == found["cluster sector exact, not borderline"] == 1
    assert found["cluster position within one die"] >= 0.95
    assert found["ring radius within 3 percent of its own"] >= 0.98
    assert found["no hour for rings, scatter, full, none"] >= 0.98


def test_the_command_writes_its_report(tmp_path: Path) -> None:
    out = tmp_path / "geometry.json"
    done = CliRunner().invoke(main, ["-o", str(out), "--wafers", "22"])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["machine"]["threads"] == 1
    assert set(report["by_kind"]) == set(KINDS)
    assert {"p50", "p99", "p100"} <= set(report["by_kind"]["cluster"]["position, dies"])
