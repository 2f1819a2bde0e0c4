"""The calibrate stage: a merged checkpoint and wafer maps to a GPTQ checkpoint, layer by layer.

Finished layers are kept in ``<out>.partial``; the same command goes on after them.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.special import rel_entr

from calibrate.gptq import QuantizedWeight, Scheme
from calibrate.inputs import Inputs, Kind, batches, stratified
from calibrate.layers import put, quantize_layer
from calibrate.pack import write_quantized
from calibrate.replay import Stream, advance, begin, check_exact, text_core
from train.artefact import (
    Provenance,
    folder_digest,
    is_complete,
    read_provenance,
    replace_folder,
    sync_tree,
    write_provenance,
    writing,
)
from train.dataset import Sample, dataset_task, read_split
from train.loading import Checkpoint, load_checkpoint
from train.progress import Progress
from train.scorer import Scores, tree_log_probs
from wafervlm.errors import GateError
from wafervlm.render import render
from wafervlm.task import Task

logger = logging.getLogger(__name__)

AGREEMENT = 0.98
REPORT = "calibration.json"


@dataclass(frozen=True)
class CalibrateSettings:
    """``maps`` class-stratified train maps, ``batch`` conversations at a time; ``check_maps`` held-out maps of
    the tune part for the gate."""

    scheme: Scheme = field(default_factory=Scheme)
    maps: int = 270
    batch: int = 16
    check_maps: int = 270
    kind: Kind = "wafers"
    device: str = "cpu"
    seed: int = 0


def calibrate(source: Path, dataset: Path, out: Path, settings: CalibrateSettings) -> dict[str, Any]:
    """Write the GPTQ checkpoint of ``source`` to ``out``; return its figures.

    Raises GateError, writing nothing, where fewer than 98 % of labels agree with full precision, or where
    the layers' error is not below round-to-nearest's.
    """
    provenance = _provenance(source, dataset, settings)
    if out.exists() and is_complete(out, provenance):
        logger.info("%s is complete and made from the same inputs", out)
        return dict(read_provenance(out)["parity"])
    task, checkpoint = dataset_task(dataset), load_checkpoint(source, device=settings.device)
    held_out = stratified(read_split(dataset, "tune"), task.labels, settings.check_maps, settings.seed)
    before = score(checkpoint, task, held_out)
    samples = stratified(read_split(dataset, "train"), task.labels, settings.maps, settings.seed)
    inputs = batches(checkpoint, task, samples, settings.kind, settings.batch, settings.seed)
    partial = _claimed(out.with_name(out.name + ".partial"), provenance)
    weights, table = quantize_model(checkpoint, inputs, settings.scheme, partial)
    figures = {
        **summary(table),
        **agreement(before, score(checkpoint, task, held_out)),
        "maps": len(held_out),
    }
    check_gate(figures)
    with writing(out, overwrite=True) as folder:
        write_quantized(load_checkpoint(source), weights, settings.scheme, folder)
        (folder / "task.json").write_bytes((dataset / "task.json").read_bytes())
        (folder / REPORT).write_text(
            json.dumps({"figures": figures, "layers": table}, indent=1), encoding="utf-8"
        )
        write_provenance(folder, replace(provenance, parity=figures))
    shutil.rmtree(partial, ignore_errors=True)
    return figures


@torch.no_grad()
def quantize_model(
    checkpoint: Checkpoint, inputs: Sequence[Inputs], scheme: Scheme, partial: Path | None = None
) -> tuple[dict[str, QuantizedWeight], list[dict[str, Any]]]:
    """Quantize all decoder layers of ``checkpoint`` in place on ``inputs``.

    Returns the weights by full name and a row of figures per linear layer. With ``partial`` each finished
    layer is kept there, and those found there are taken as they are.
    """
    model = checkpoint.model
    if "pixel_values" in inputs[0]:
        check_exact(model, inputs[0])
    streams = [begin(model, batch) for batch in inputs]
    weights: dict[str, QuantizedWeight] = {}
    table: list[dict[str, Any]] = []
    layers = len(text_core(model).layers)
    with Progress("calibrate layers", layers) as progress:
        for index in range(layers):
            found = _finished(partial, index)
            if found is None:
                found = _quantized(model, index, streams, scheme)
                _keep(partial, index, *found)
            else:
                _restore(model, index, streams, found[0])
            weights |= found[0]
            table += found[1]
            progress.advance(note=f"error {np.mean([row['error'] for row in found[1]]):.5f}")
    return weights, table


def score(checkpoint: Checkpoint, task: Task, samples: Sequence[Sample]) -> Scores:
    """Label log-probabilities (N, L) of ``checkpoint`` on ``samples``."""
    return tree_log_probs(checkpoint, task, [render(s.wafer, task.render) for s in samples])


def agreement(before: Scores, after: Scores) -> dict[str, float]:
    """Share of equal labels, and mean KL in nats of the label distribution from ``before`` to ``after``."""
    p, q = np.exp(before), np.maximum(np.exp(after), 1e-300)
    return {
        "label_agreement": float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
        "kl": float(rel_entr(p, q).sum(axis=1).mean()),
    }


def summary(table: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean layer error and round-to-nearest's, and the largest absolute activation."""
    return {
        "layer_error": float(np.mean([row["error"] for row in table])),
        "layer_error_nearest": float(np.mean([row["error_nearest"] for row in table])),
        "absolute_maximum": max(float(row["absolute_maximum"]) for row in table),
    }


def check_gate(figures: dict[str, Any]) -> None:
    """Raise GateError where calibration did not come out."""
    if figures["label_agreement"] < AGREEMENT:
        raise GateError(
            f"labels agree with full precision on {figures['label_agreement']:.1%} of {figures['maps']} held-out maps, "
            f"less than {AGREEMENT:.0%}; use more bits, smaller groups or more maps"
        )
    if figures["layer_error"] >= figures["layer_error_nearest"]:
        raise GateError(
            f"the mean layer error {figures['layer_error']:.2g} is not below round-to-nearest's "
            f"{figures['layer_error_nearest']:.2g}; calibrate on more maps"
        )


def _quantized(
    model: Any, index: int, streams: list[Stream], scheme: Scheme
) -> tuple[dict[str, QuantizedWeight], list[dict[str, Any]]]:
    result = quantize_layer(model, index, streams, scheme)
    prefix = f"model.language_model.layers.{index}"
    rows = [
        {
            "layer": f"{prefix}.{name}",
            "error": linear.error,
            "error_nearest": linear.error_nearest,
            "tokens": linear.tokens,
            "absolute_maximum": linear.absolute_maximum,
            "hidden_absolute_maximum": result.absolute_maximum,
        }
        for name, linear in result.linears.items()
    ]
    return {f"{prefix}.{name}": linear.weight for name, linear in result.linears.items()}, rows


def _restore(model: Any, index: int, streams: list[Stream], weights: dict[str, QuantizedWeight]) -> None:
    for name, weight in weights.items():
        put(model.get_submodule(name), weight)
    advance(model, index, streams)


def _keep(
    partial: Path | None, index: int, weights: dict[str, QuantizedWeight], rows: list[dict[str, Any]]
) -> None:
    if partial is None:
        return
    work, done = partial / f"layer-{index}.writing", partial / f"layer-{index}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tensors = {f"{name}.levels": w.levels.cpu().contiguous() for name, w in weights.items()}
    tensors |= {f"{name}.scales": w.scales.cpu().contiguous() for name, w in weights.items()}
    save_file(tensors, work / "weights.safetensors")
    (work / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    sync_tree(work)
    replace_folder(work, done)


def _finished(
    partial: Path | None, index: int
) -> tuple[dict[str, QuantizedWeight], list[dict[str, Any]]] | None:
    if partial is None or not (partial / f"layer-{index}").is_dir():
        return None
    try:
        tensors = load_file(partial / f"layer-{index}" / "weights.safetensors")
        rows = json.loads((partial / f"layer-{index}" / "rows.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError):
        return None
    names = [name.removesuffix(".levels") for name in tensors if name.endswith(".levels")]
    return {n: QuantizedWeight(tensors[f"{n}.levels"], tensors[f"{n}.scales"]) for n in names}, rows


def _claimed(partial: Path, provenance: Provenance) -> Path:
    """``partial``, emptied where it belongs to another calibration."""
    claim = json.dumps(
        {"inputs": dict(provenance.inputs), "settings": dict(provenance.settings)}, default=str
    )
    path = partial / "claim.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != claim:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        path.write_text(claim, encoding="utf-8")
    return partial


def _provenance(source: Path, dataset: Path, settings: CalibrateSettings) -> Provenance:
    inputs = {"checkpoint": folder_digest(source), "dataset": folder_digest(dataset)}
    return Provenance("calibrate", inputs, asdict(settings), settings.seed)
