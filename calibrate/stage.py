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
from typing import Any, Literal

import numpy as np
import torch

from calibrate.described import descriptions, words_loss
from calibrate.gptq import QuantizedWeight, Scheme
from calibrate.influence import WORDS_SHARE, Influence, balanced, influences
from calibrate.inputs import Inputs, Kind, batches, distinct_tokens, questions, stratified, warn_if_few
from calibrate.judge import agreement, check_gate, score, summary
from calibrate.layers import Row, linears, quantize_model, round_model
from calibrate.pack import write_quantized
from calibrate.partial import Partial
from calibrate.replay import text_core
from train.artefact import (
    Provenance,
    folder_digest,
    is_complete,
    read_provenance,
    write_provenance,
    writing,
)
from train.dataset import TASK, Sample, dataset_task, read_split
from train.encoding import encode
from train.loading import Checkpoint, check_placement, checkpoint_family, load_checkpoint
from train.samples import held_out
from train.scorer import Scores
from train.streamed import Stored, keep_one_layer, load_streamed
from wafervlm.errors import CheckpointError, ConfigError, DatasetError, LeakError
from wafervlm.files import check_writable
from wafervlm.task import Task

logger = logging.getLogger(__name__)

REPORT = "calibration.json"
Weigh = Literal["answers", "same"]
Offload = Literal["none", "host", "disk"]
OFFLOADS: tuple[Offload, ...] = ("none", "host", "disk")
WEIGHS: tuple[Weigh, ...] = ("answers", "same")


@dataclass(frozen=True)
class CalibrateSettings:
    """``maps`` class-stratified train maps, ``batch`` conversations at a time; ``check_maps`` held-out maps
    of the tune part for the gate. ``kind`` is what is calibrated on, wafers but for comparison. ``dtype`` is
    what the model computes in while it is calibrated. ``weigh`` says what a token counts: as much as it bears
    on the "answers", or all the "same". ``offload`` says where decoder layers are that do not run just now:
    on the device too ("none"), in the "host"'s memory, or on "disk". So many ``words`` of the maps are
    described too, in three parts, for a checkpoint that does both. Raises ConfigError."""

    scheme: Scheme = field(default_factory=Scheme)
    maps: int = 270
    batch: int = 16
    check_maps: int = 270
    kind: Kind = "wafers"
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    weigh: Weigh = "answers"
    words: int = 0
    offload: Offload = "none"

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise ConfigError(f"offload is {self.offload!r}; it must be one of {', '.join(OFFLOADS)}")
        if self.offload != "none" and self.weigh == "answers":
            raise ConfigError(
                "what tokens bear on the answers needs a backward pass through all layers at once, which "
                "offloaded layers do not allow; set weigh to same"
            )
        if not 0 <= self.words <= self.maps:
            raise ConfigError(f"words is {self.words!r}; it must be a number of the {self.maps} maps, from 0")
        if self.weigh not in WEIGHS:
            raise ConfigError(f"weigh is {self.weigh!r}; it must be one of {', '.join(WEIGHS)}")


def calibrate(source: Path, dataset: Path, out: Path, settings: CalibrateSettings) -> dict[str, Any]:
    """Write the GPTQ checkpoint of ``source`` to ``out``; return its figures.

    Raises GateError, writing nothing, where fewer than 98 % of labels agree with full precision, or where it
    is no better than round-to-nearest; LeakError where a calibration map's lot is in tune or test.
    """
    provenance = _provenance(source, dataset, settings)
    if out.exists() and is_complete(out, provenance):
        logger.info("%s is complete and made from the same inputs", out)
        return dict(read_provenance(out)["parity"])
    check_writable(out)
    task = dataset_task(dataset)
    samples, checks = draw(dataset, settings)
    before, nearest = reference_scores(source, task, checks, settings)
    checkpoint = load(source, settings)
    partial = Partial(out, provenance)
    weights, rows, figures = quantize_checkpoint(checkpoint, task, samples, settings, partial)
    figures |= agreement(before, score(checkpoint, task, checks, "score quantized"), task)
    if settings.words:
        figures |= _words_figures(source, checkpoint, task, checks, settings)
    figures |= {f"{key}_nearest": value for key, value in agreement(before, nearest, task).items()}
    figures["maps"] = len(checks)
    check_gate(figures)
    with writing(out, overwrite=True) as folder:
        write_quantized(checkpoint, weights, settings.scheme, folder)
        shutil.copyfile(dataset / TASK, folder / TASK)
        report = {"figures": figures, "layers": rows}
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        write_provenance(folder, replace(provenance, parity=figures))
    partial.remove()
    return figures


def draw(dataset: Path, settings: CalibrateSettings) -> tuple[list[Sample], list[Sample]]:
    """Class-stratified train maps to calibrate on, and tune maps to judge on. Raises LeakError where a lot
    of the first is in tune or test; DatasetError where there are no tune maps."""
    samples = stratified(read_split(dataset, "train"), settings.maps, settings.seed)
    tune = held_out(dataset, "tune")
    if not tune:
        raise DatasetError(f"{dataset} has no tune maps for the gate; build it again with some (-e)")
    lots = {sample.wafer.lot for sample in samples if sample.wafer.lot}
    for part, others in (("tune", tune), ("test", held_out(dataset, "test"))):
        shared = sorted(lots & {sample.wafer.lot for sample in others})
        if shared:
            raise LeakError(
                f"lot {shared[0]} of {dataset} is calibrated on and is in {part} too; build the dataset again"
            )
    return samples, stratified(tune, settings.check_maps, settings.seed)


def reference_scores(
    source: Path, task: Task, checks: Sequence[Sample], settings: CalibrateSettings
) -> tuple[Scores, Scores]:
    """Label log-probabilities (N, L) of ``checks`` at full precision, and rounded to nearest."""
    checkpoint = load(source, settings)
    before = score(checkpoint, task, checks, "score full precision")
    round_model(checkpoint.model, settings.scheme)
    return before, score(checkpoint, task, checks, "score round-to-nearest")


def quantize_checkpoint(
    checkpoint: Checkpoint,
    task: Task,
    samples: Sequence[Sample],
    settings: CalibrateSettings,
    partial: Partial | None = None,
) -> tuple[dict[str, QuantizedWeight], list[Row], dict[str, Any]]:
    """Quantize the model of ``checkpoint`` in place; return its weights by full name, a row of figures for
    each, and their summary."""
    inputs = batches(checkpoint, task, samples, settings.kind, settings.batch, settings.seed)
    asked = [_asked(checkpoint, task, settings)] * len(inputs)
    if settings.kind != "text":
        given = questions(checkpoint, task, len(samples), settings.batch)
        asked = [begin + more for begin, more in zip(asked, given, strict=True)]
    labelled = len(inputs)
    if settings.words:
        described = stratified(samples, settings.words, settings.seed)
        told, begins = descriptions(checkpoint, task, described, settings.batch, settings.seed)
        inputs, asked = inputs + told, asked + begins
    model = checkpoint.model
    distinct = distinct_tokens(inputs, model.config.image_token_id)
    every = [m for i in range(len(text_core(model).layers)) for m in linears(model, i).values()]
    warn_if_few(distinct, len(samples), max(module.in_features for module in every))
    influence = _influence(checkpoint, inputs, asked, settings) if settings.weigh == "answers" else None
    if influence and settings.words:
        influence = balanced(influence, labelled, WORDS_SHARE)
    whole = quantize_model(model, inputs, settings.scheme, partial, influence)
    figures = {**summary(whole.rows), "calibration_maps": len(samples), "distinct_tokens": distinct}
    return whole.weights, whole.rows, figures


def _asked(checkpoint: Checkpoint, task: Task, settings: CalibrateSettings) -> int:
    """The index of the answer's first token; passages of text are answers from end to end."""
    blank = np.zeros((task.render.height, task.render.width, 3), dtype=np.uint8)
    return 0 if settings.kind == "text" else int(encode(checkpoint, task, [blank])["input_ids"].shape[1])


def _words_figures(
    source: Path, quantized: Checkpoint, task: Task, checks: Sequence[Sample], settings: CalibrateSettings
) -> dict[str, float]:
    """Nats per token of the descriptions of ``checks``: quantized, at full precision, rounded to nearest."""

    def loss(checkpoint: Checkpoint) -> float:
        return words_loss(checkpoint, task, checks, settings.batch, settings.seed)

    found, checkpoint = {"words_loss": loss(quantized)}, load(source, settings)
    found["words_loss_full"] = loss(checkpoint)
    round_model(checkpoint.model, settings.scheme)
    return {**found, "words_loss_nearest": loss(checkpoint)}


def _influence(
    checkpoint: Checkpoint, inputs: Sequence[Inputs], asked: Sequence[int], settings: CalibrateSettings
) -> list[Influence]:
    """What the tokens of ``inputs`` bear on the answers, which begin at ``asked`` of each."""
    layers = range(len(text_core(checkpoint.model).layers))
    modules = {name: module for i in layers for name, module in linears(checkpoint.model, i).items()}
    return influences(checkpoint.model, inputs, modules, asked, settings.seed)


def load(source: Path, settings: CalibrateSettings) -> Checkpoint:
    """The full-precision checkpoint. Raises CheckpointError for one that is quantized already."""
    if (source / "quantize_config.json").is_file():
        raise CheckpointError(f"{source} is quantized already; give the merged checkpoint")
    if settings.offload == "none":
        return load_checkpoint(source, dtype=settings.dtype, device=settings.device)
    check_placement(settings.dtype, settings.device)
    if settings.offload == "host":
        checkpoint = load_checkpoint(source, dtype=settings.dtype)
        keep_one_layer(checkpoint, settings.device)
        return checkpoint
    family = checkpoint_family(source)
    stored = Stored(source, family, getattr(torch, settings.dtype))
    return load_streamed(source, family, stored, dtype=settings.dtype, device=settings.device)


def _provenance(source: Path, dataset: Path, settings: CalibrateSettings) -> Provenance:
    inputs = {"checkpoint": folder_digest(source), "dataset": folder_digest(dataset)}
    return Provenance("calibrate", inputs, asdict(settings), settings.seed)
