"""The benchmark stage: a bundle, its full-precision parent and labelled maps in, a report out."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import scores
from benchmarks.accuracy import compared, scored
from benchmarks.contenders import BUNDLE, GENERATE, ONE_FORWARD, OPENVINO, STATIC
from benchmarks.footprint import disk_mib, measure_footprint
from benchmarks.latency import LatencySettings, measure_latency
from benchmarks.machine import describe_machine
from benchmarks.pictures import disagreements
from benchmarks.report import write_report
from benchmarks.statistics import Floats
from benchmarks.verdict import judge
from benchmarks.zero_shot import read_zero_shot
from export.stage import ExportConfig, export
from train.artefact import Provenance, folder_digest, is_complete, write_provenance, writing
from train.dataset import Sample
from wafervlm.bundle import open_bundle
from wafervlm.errors import LockError, SetupError, UsageError
from wafervlm.manifest import Manifest
from wafervlm.model import load
from wafervlm.task import Task

log = logging.getLogger(__name__)

REPORT, HTML, SCORES = "report.json", "report.html", "scores.npz"
SCHEMA_VERSION = 1
QUICK_PER_CLASS, QUICK_NATURAL, QUICK_CALLS, QUICK_GENERATE = 10, 300, 30, 4


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is judged, on what, and how."""

    reference: Path
    """Full-precision checkpoint that the bundle was made from."""
    maps: Path
    """Labelled maps: a dataset folder (its part ``split``), a .npz, a folder of class folders."""
    bundle: Path | None = None
    """Bundle folder; the embedded nano bundle when None."""
    base: Path | None = None
    """Checkpoint before fine-tuning, or what ``zero_shot`` wrote of it: the zero-shot bars."""
    split: str = "test"
    natural: Path | None = None
    """Labelled maps in their natural mix, for screening, calibration and agreement."""
    natural_split_file: str | None = None
    """Split file, or the name of a committed one, whose part ``split`` is taken of ``natural``."""
    full_precision: Path | None = None
    """Bundle at full precision; exported from the reference when None."""
    threads: int = 2
    latency_maps: int = 200
    generate_maps: int = 20
    margin: float = 0.01
    """Loss of accuracy that is still called not worse, as a share."""
    quick: bool = False
    """Fewer maps and calls: a look, not a figure to report."""
    footprint: bool = True
    """Measure load time and memory of each contender in a fresh process."""
    device: str = "auto"
    """Where checkpoints are scored: cpu, cuda, or auto. Latency is always that of the CPU."""

    def __post_init__(self) -> None:
        for name in ("threads", "latency_maps", "generate_maps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.margin < 1:
            raise UsageError(f"margin is {self.margin}; it must be a share between 0 and 1, as 0.01")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SetupError("device is cuda and torch sees no GPU here; leave it out")

    def settled(self) -> BenchmarkConfig:
        """The settings in effect on this machine."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if not self.quick:
            return replace(self, device=device)
        calls, generate = min(self.latency_maps, QUICK_CALLS), min(self.generate_maps, QUICK_GENERATE)
        return replace(self, device=device, latency_maps=calls, generate_maps=generate)


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
    if out.exists():
        raise UsageError(
            f"{out} exists and was made from other inputs or settings; remove it or choose another folder"
        )
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        report, arrays, pictures = _measure(config)
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


def _measure(config: BenchmarkConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    machine = describe_machine(config.threads)
    with load(config.bundle, threads=config.threads) as model:
        task, manifest, digest = model.task, model.manifest, model.digest
        sets = _sets(config, task)
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
        "settings": _settings(config),
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


def _sets(config: BenchmarkConfig, task: Task) -> dict[str, list[Sample]]:
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
            export(ExportConfig(config.reference, task, name="full-precision"), static)
        _check_static(static, task)
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


def _settings(config: BenchmarkConfig) -> dict[str, Any]:
    """The settings without the paths, which say nothing elsewhere; provenance.json has their digests."""
    return {key: value for key, value in asdict(config).items() if not isinstance(value, Path)}


def _provenance(config: BenchmarkConfig) -> Provenance:
    inputs = {"bundle": open_bundle(config.bundle).digest}
    for name in ("reference", "maps", "base", "natural", "full_precision"):
        path = getattr(config, name)
        if path is None or str(path) == "synthetic":
            continue
        if not path.exists():
            raise UsageError(f"{name} {path} does not exist; check the path")
        inputs[name] = folder_digest(path)
    return Provenance(
        "benchmark", inputs, {**_settings(config), "synthetic": str(config.maps) == "synthetic"}
    )


def _headline(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": report["accuracy"],
        "agreement": report["agreement"],
        "verdict": report["verdict"]["answer"],
    }
