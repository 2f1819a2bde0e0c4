"""The benchmark stage: a bundle, its full-precision parent and labelled maps in, a report out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.config import BenchmarkConfig
from benchmarks.judging import measure
from benchmarks.report import write_report
from train.artefact import Provenance, folder_digest, is_complete, require_free, write_provenance, writing
from train.sources import SYNTHETIC
from wafervlm.bundle import open_bundle
from wafervlm.errors import UsageError

REPORT, HTML, SCORES = "report.json", "report.html", "scores.npz"


def benchmark(config: BenchmarkConfig, out: Path) -> tuple[dict[str, Any], bool]:
    """Write report.json, report.html and scores.npz to ``out``; return the report, and whether made now.

    A complete ``out`` of the same inputs and settings is left as it is. Raises UsageError, DatasetError,
    CheckpointError, IntegrityError, and LockError where the full-precision bundle has another task.
    """
    config, out = config.settled(), Path(out)
    provenance = _provenance(config)
    if is_complete(out, provenance):
        report: dict[str, Any] = json.loads((out / REPORT).read_text(encoding="utf-8"))
        return report, False
    require_free(out, provenance)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        report, arrays, pictures = measure(config)
    finally:
        torch.set_num_threads(threads_before)
    with writing(out) as work:
        (work / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        np.savez_compressed(work / SCORES, allow_pickle=False, **arrays)
        write_report(report, pictures, work / HTML)
        write_provenance(work, replace(provenance, parity=_headline(report)))
    return report, True


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of ``report`` that a command prints."""
    percentiles = ("p50", "p90", "p99")
    return {
        "accuracy": report["accuracy"],
        "agreement": report["agreement"],
        "kl": report["comparison"]["kl"]["mean"],
        "ece": report["ece"],
        "verdict": report["verdict"]["answer"],
        "latency_ms": {
            name: {p: round(times[p], 3) for p in percentiles} for name, times in report["latency_ms"].items()
        },
        "machine": report["machine"],
    }


def _provenance(config: BenchmarkConfig) -> Provenance:
    inputs = {"bundle": open_bundle(config.bundle).digest}
    for name in ("reference", "maps", "base", "natural", "full_precision"):
        path = getattr(config, name)
        if path is None or str(path) == SYNTHETIC:
            continue
        if not path.exists():
            raise UsageError(f"{name} {path} does not exist; check the path")
        inputs[name] = folder_digest(path)
    settings = {**config.without_paths(), "synthetic": str(config.maps) == SYNTHETIC}
    return Provenance("benchmark", inputs, settings)


def _headline(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": report["accuracy"],
        "agreement": report["agreement"],
        "verdict": report["verdict"]["answer"],
    }
