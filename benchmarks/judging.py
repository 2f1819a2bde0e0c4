"""Everything that a benchmark measures, gathered into the values of report.json."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import scores
from benchmarks.accuracy import compared, scored
from benchmarks.config import BenchmarkConfig
from benchmarks.contenders import BUNDLE, GENERATE, ONE_FORWARD, OPENVINO, STATIC
from benchmarks.footprint import disk_mib, measure_footprint
from benchmarks.latency import LatencySettings, measure_latency
from benchmarks.machine import describe_machine
from benchmarks.pictures import disagreements
from benchmarks.statistics import Floats
from benchmarks.verdict import judge
from benchmarks.zero_shot import read_zero_shot
from export.stage import ExportConfig, export
from train.artefact import folder_digest
from train.dataset import Sample
from wafervlm.bundle import open_bundle
from wafervlm.errors import LockError, UsageError
from wafervlm.loading import load
from wafervlm.manifest import Manifest
from wafervlm.task import Task

SCHEMA_VERSION = 1
QUICK_PER_CLASS, QUICK_NATURAL = 10, 300


def measure(config: BenchmarkConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    machine = describe_machine(config.threads)
    with load(config.bundle, threads=config.threads) as model:
        task, manifest, digest = model.task, model.manifest, model.digest
        check_single(task)
        if config.full_precision is not None:
            _check_static(config.full_precision, task)
        sets = labelled_sets(config, task)
        ours = {name: scores.bundle_log_probs(model, samples) for name, samples in sets.items()}
    checkpoint = scores.open_checkpoint(config.reference, config.device)
    theirs = {name: scores.checkpoint_log_probs(checkpoint, task, s) for name, s in sets.items()}
    alarms = scores.alarms(checkpoint, task, sets["maps"])
    del checkpoint
    base = _base(config, task, sets["maps"])
    judged = {
        name: _judged(
            samples, ours[name], theirs[name], base if name == "maps" else None, manifest, config.margin
        )
        for name, samples in sets.items()
    }
    measured = _latency(config, task, sets["maps"])
    report = {
        "schema_version": SCHEMA_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": config.quick,
        **_front(judged["maps"]),
        **{key: measured[key] for key in ("latency_ms", "latency", "footprint")},
        "natural": judged.get("natural"),
        "reference_checks": alarms,
        "task": {"name": task.name, "digest": task.digest, "labels": list(task.labels), **_wording(task)},
        "bundle": _about_bundle(manifest, digest, config.bundle),
        "reference_is_parent": _is_parent(manifest, folder_digest(config.reference)),
        "settings": config.without_paths(),
        "machine": machine,
        "provenance": [dict(record) for record in manifest.provenance],
        "citations": list(manifest.citations),
    }
    arrays = {
        f"{name}_{who}": values
        for who, of in (("bundle", ours), ("reference", theirs))
        for name, values in of.items()
    }
    arrays |= {f"{name}_labels": np.array([s.label for s in samples]) for name, samples in sets.items()}
    if base is not None:
        arrays["maps_base"] = base
    pictures = {
        name: disagreements(samples, task, ours[name], theirs[name], manifest.temperature)
        for name, samples in sets.items()
    }
    return report, arrays, pictures


def labelled_sets(config: BenchmarkConfig, task: Task) -> dict[str, list[Sample]]:
    """The maps that a benchmark judges on by name: maps, and natural where they are named."""
    sets = {"maps": scores.load_maps(config.maps, task, split=config.split)}
    if config.natural is not None:
        sets["natural"] = scores.load_maps(
            config.natural, task, split=config.split, split_file=config.natural_split_file
        )
    if not config.quick:
        return sets
    found: dict[str, int] = {}
    kept = []
    for sample in sets["maps"]:
        found[sample.label] = found.get(sample.label, 0) + 1
        if found[sample.label] <= QUICK_PER_CLASS:
            kept.append(sample)
    quick = {"maps": kept}
    if "natural" in sets:
        # Whole stretches of lot order, so that lots stay together.
        quick["natural"] = sets["natural"][:QUICK_NATURAL]
    return quick


def _base(config: BenchmarkConfig, task: Task, samples: list[Sample]) -> Floats | None:
    if config.base is None:
        return None
    known = read_zero_shot(config.base, task, samples)
    if known is not None:
        return known
    return scores.checkpoint_log_probs(
        scores.open_checkpoint(config.base, config.device), task, samples, "the base"
    )


def _judged(
    samples: list[Sample],
    bundle: Floats,
    reference: Floats,
    base: Floats | None,
    manifest: Manifest,
    margin: float,
) -> dict[str, Any]:
    labels = manifest.task.labels
    models = {"base": scored(base, samples, labels)} if base is not None else {}
    models |= {
        "reference": scored(reference, samples, labels),
        "bundle": scored(bundle, samples, labels, manifest.temperature),
    }
    comparison = compared(bundle, reference, samples, labels)
    return {
        "models": models,
        "comparison": comparison,
        "verdict": judge(comparison["paired"], margin),
        "maps": {
            "count": len(samples),
            "lots": models["bundle"]["accuracy"]["lots"],
            "classes": {label: sum(s.label == label for s in samples) for label in labels},
            "digest": scores.samples_digest(samples),
        },
    }


def _front(judged: dict[str, Any]) -> dict[str, Any]:
    """The figures that other tools read, in front and without their intervals."""
    return {
        "accuracy": {name: figures["accuracy"]["value"] for name, figures in judged["models"].items()},
        "agreement": judged["comparison"]["agreement"]["value"],
        "ece": judged["models"]["bundle"]["calibration"]["ece"],
        **judged,
    }


def _latency(config: BenchmarkConfig, task: Task, samples: list[Sample]) -> dict[str, Any]:
    wafers = [sample.wafer for sample in samples]
    settings = LatencySettings(config.latency_maps, config.generate_maps, config.threads)
    with tempfile.TemporaryDirectory() as folder:
        static = config.full_precision or Path(folder, "static")
        if config.full_precision is None:
            with _uncalibrated():
                export(ExportConfig(config.reference, task, name="full-precision"), static)
        found = measure_latency(config.bundle, static, config.reference, task, wafers, settings)
        bundle = open_bundle(config.bundle).path
        targets = {BUNDLE: bundle, STATIC: static, ONE_FORWARD: config.reference, GENERATE: config.reference}
        targets |= {OPENVINO: bundle} if OPENVINO not in found["absent"] else {}
        footprint = (
            measure_footprint(targets, _fastest(found), task, wafers[0], config.threads)
            if config.footprint
            else {name: {"disk_mib": disk_mib(path)} for name, path in targets.items()}
        )
    return {"latency_ms": found.pop("latency_ms"), "latency": found, "footprint": footprint}


@contextmanager
def _uncalibrated() -> Iterator[None]:
    """Without the export's advice to fit a temperature: of this graph only the time and label count."""
    logger = logging.getLogger("export.bundle")
    logger.addFilter(_drop)
    try:
        yield
    finally:
        logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING


def check_single(task: Task) -> None:
    """Raise UsageError for a multi-label task, whose answers are no classes to count."""
    if task.multi_label:
        raise UsageError(
            f"task {task.name!r} is multi-label and this benchmark counts single labels; judge it as "
            "benchmarks.mixed does: python -m benchmarks.mixed --recipe FILE"
        )


def _check_static(static: Path, task: Task) -> None:
    manifest = open_bundle(static).manifest
    if manifest.graph.precision != "float32":
        raise UsageError(
            f"{static} is an {manifest.graph.precision} bundle; give one at full precision, or none"
        )
    if manifest.task_digest != task.digest:
        raise LockError(f"the full-precision bundle {static} has another task than the bundle judged")


def _fastest(found: dict[str, Any]) -> dict[str, str]:
    return {name: min(tried, key=lambda p: tried[p]) for name, tried in found["precisions"].items()}


def _wording(task: Task) -> dict[str, Any]:
    render = task.render
    return {
        "prompt": task.prompt,
        "order": task.order,
        "answer": task.answer(task.labels[0]),
        "image": [render.height, render.width],
    }


def _about_bundle(manifest: Manifest, digest: str, path: Path | None) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "embedded": path is None,
        "digest": digest,
        "created": manifest.created,
        "graph": asdict(manifest.graph),
        "temperature": manifest.temperature,
        "bytes": sum(entry.size for entry in manifest.files),
        "parity": dict(manifest.parity),
    }


def _is_parent(manifest: Manifest, reference: str) -> bool:
    """Whether the bundle's provenance names the checkpoint with digest ``reference``."""
    named = [record.get("digest") for record in manifest.provenance]
    return reference in named or any(reference in r.get("inputs", {}).values() for r in manifest.provenance)
