"""The export stage: a checkpoint and a task in, a bundle out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.multiplied import load_reference_streamed
from export.builder import IR_VERSIONS, OPSET
from export.bundle import Contents, write_bundle
from export.chain import citations_of, collect_chain
from export.external import WeightFile
from export.golden import LARGE_PER_LABEL, PER_LABEL, chosen_golden, drawn_evenly, synthetic_golden
from export.graph import classify_graph
from export.parity import load_reference, reference_scores
from export.processor import normalisation_of
from export.weights import Weights
from export.words import CONTEXT, WordsContents, words_section
from train.artefact import (
    PROVENANCE,
    Provenance,
    changes,
    folder_digest,
    is_complete,
    read_provenance,
    write_provenance,
    writing,
)
from train.dataset import DIES, Sample, read_labelled
from train.encoding import check_image_size
from train.inventory import take_inventory
from train.loading import load_processor
from train.progress import Progress
from train.scorer import tree_log_probs
from train.shards import check_finite
from train.streamed import residency_of
from wafervlm.answers import strangers
from wafervlm.bundle import Graph, Manifest, open_bundle
from wafervlm.errors import CheckpointError, DatasetError, UsageError
from wafervlm.files import check_writable
from wafervlm.manifest import VISIONS, Vision
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """What to export."""

    checkpoint: Path
    """Hugging Face folder of a known family: full precision, or quantized in the AutoGPTQ v1 layout."""
    task: Task
    """The question, labels and rendering that the bundle is locked to."""
    tune: Path | None = None
    """Dataset folder (its tune part is taken) or labelled maps on which the temperature is fitted."""
    golden: Literal["synthetic", "tune"] = "synthetic"
    """Where golden maps come from. Maps that may not be passed on must not become golden maps."""
    accuracy_level: int = 4
    """What 4-bit products compute in on a CPU when deployed: 0 float32, exact; 4 8-bit integers."""
    vision: Vision = "float32"
    """What the vision tower computes in: float32, or int8, which is faster on a CPU and not exact."""
    opset: int = OPSET
    """ONNX operator set: 21 for what lacks Attention, RotaryEmbedding and RMSNormalization of 23, such as
    TensorRT before 10.15."""
    name: str = ""
    """Name of the bundle; by default the task's."""
    wm811k: bool | None = None
    """Whether the model was trained on WM-811K, whose citations then go in; None: as provenance says."""
    seed: int = 0
    """Of the golden maps."""
    golden_maps: int | None = None
    """At most how many golden maps; None: two of each label, and one of each for a large model."""
    words: bool = False
    """Whether the bundle also generates text: the graphs and the tokenizer for it go in."""
    context: int = CONTEXT
    """Tokens of question, image and answer together that generated text is made for, at most the model's."""
    ancestors: tuple[Path, ...] = ()
    """Folders the checkpoint was made from that do not lie beside it; their records go in."""

    def __post_init__(self) -> None:
        if self.golden == "tune" and self.tune is None:
            raise UsageError("golden maps are to come from the tune maps, but none are given; give --dataset")
        if self.vision not in VISIONS:
            raise UsageError(f"vision is {self.vision!r}; it must be one of {', '.join(VISIONS)}")
        if self.opset not in IR_VERSIONS:
            raise UsageError(f"opset is {self.opset}; it must be one of {', '.join(map(str, IR_VERSIONS))}")
        if self.golden_maps is not None and self.golden_maps < 1:
            raise UsageError(f"golden_maps is {self.golden_maps}; a bundle needs at least one golden map")
        if self.context < 1:
            raise UsageError(f"context is {self.context}; it must be a number of tokens")
        if self.accuracy_level not in (0, 4):
            raise UsageError(
                f"accuracy level {self.accuracy_level} is neither 0 (exact) nor 4 (8-bit integers)"
            )


def export(config: ExportConfig, out: Path, *, replace: bool = False) -> tuple[Manifest, bool]:
    """Write the bundle ``out``; return its manifest, and whether it was written now.

    A complete ``out`` of the same inputs and settings is left as it is, one of others only replaced with
    ``replace``. Raises CheckpointError, TaskError, DatasetError, UsageError, and GateError where the graph's
    scores are not the checkpoint's; nothing is written then.
    """
    out = Path(out)
    provenance = _provenance(config)
    if is_complete(out, provenance):
        return open_bundle(out).manifest, False
    check_writable(out)
    if out.exists():
        _check_replaceable(out, provenance, replace)
    contents = _contents(config, take_inventory(config.checkpoint).large)
    with writing(out, overwrite=replace) as work:
        write_provenance(work, provenance)
        manifest = write_bundle(work, config.name or config.task.name, contents)
    return manifest, True


def build_model(
    weights: Weights,
    task: Task,
    vision: Vision = "float32",
    file: WeightFile | None = None,
    opset: int = OPSET,
) -> ir.Model:
    """The classify graph of the checkpoint behind ``weights`` for ``task`` in operators of ``opset``; with
    ``file`` its weights are written there."""
    processor = load_processor(weights.path)
    check_image_size(processor, task.render.height, task.render.width)
    return classify_graph(
        weights,
        processor.tokenizer,
        normalisation_of(processor),
        task,
        integer_vision=vision == "int8",
        file=file,
        opset=opset,
    )


def _contents(config: ExportConfig, large: bool) -> Contents:
    task = config.task
    weights = Weights(config.checkpoint)
    graph = _graph(weights, config)
    tune = tune_samples(config)
    golden = golden_samples(config, tune, large)
    data = (config.tune,) if config.tune is not None else ()
    records = collect_chain(config.checkpoint, (*config.ancestors, *data))
    return Contents(
        build=functools.partial(build_model, weights, task, opset=config.opset),
        task=task,
        graph=graph,
        golden=golden,
        reference=_reference(config.checkpoint, bool(weights.quantization), task, golden, large),
        tune=tune,
        provenance=records,
        citations=citations_of(records, config.wm811k),
        streamed=large,
        words=_words(weights, config) if config.words else None,
    )


def _words(weights: Weights, config: ExportConfig) -> WordsContents:
    processor = load_processor(weights.path)
    check_image_size(processor, config.task.render.height, config.task.render.width)
    section = words_section(weights, processor, config.task, config.context)
    return WordsContents(section, weights, processor, config.opset)


def golden_samples(config: ExportConfig, tune: Sequence[Sample], large: bool) -> list[Sample]:
    """The golden maps of an export."""
    each = -(-golden_count(config, large) // len(config.task.labels))
    samples = (
        chosen_golden(tune, config.task, config.seed, each)
        if config.golden == "tune"
        else synthetic_golden(config.task, config.seed, each)
    )
    return drawn_evenly(samples, golden_count(config, large))


def golden_count(config: ExportConfig, large: bool) -> int:
    """How many golden maps are asked for."""
    each = LARGE_PER_LABEL if large else PER_LABEL
    return config.golden_maps or each * len(config.task.labels)


def _reference(
    checkpoint: Path, quantized: bool, task: Task, golden: Sequence[Sample], large: bool
) -> NDArray[np.float64]:
    """Label log-probabilities (N, L) of transformers in float32: label by label, or for a large model in one
    pass of the label tree, with one layer in memory at a time. Raises CheckpointError where they are not
    finite."""
    images = [render(sample.wafer, task.render) for sample in golden]
    if not large:
        logger.info("computing the reference scores of %d golden maps, label by label", len(golden))
        scores = reference_scores(load_reference(checkpoint, quantized), task, images)
    else:
        scores = _reference_streamed(checkpoint, task, images)
    if not np.isfinite(scores).all():
        check_finite(checkpoint)
        raise CheckpointError(
            f"{checkpoint} gives scores that are not finite, though its weights are: they run beyond what "
            "float32 holds; train it again with a lower learning rate"
        )
    return scores


def _reference_streamed(checkpoint: Path, task: Task, images: Sequence[RgbImage]) -> NDArray[np.float64]:
    logger.info("computing the reference scores of %d golden maps, layer by layer", len(images))
    loaded = load_reference_streamed(checkpoint)
    residency = residency_of(loaded)
    with Progress("reference, layer by layer", len(residency or ())) as progress:
        if residency is not None:
            residency.watch = progress.advance
        return tree_log_probs(loaded, task, images, batch_size=len(images))


def _graph(weights: Weights, config: ExportConfig) -> Graph:
    if not weights.quantization:
        return Graph(
            precision="float32",
            group_size=None,
            accuracy_level=0,
            vision=config.vision,
            opset=config.opset,
        )
    bits, group = weights.quantization.get("bits"), weights.quantization.get("group_size")
    if bits not in (3, 4) or not isinstance(group, int) or group < 1:
        raise CheckpointError(
            f"{weights.path} has {bits} bits in groups of {group}; known are 4 and 3 bits in groups"
        )
    return Graph(
        precision=f"int{bits}",
        group_size=group,
        accuracy_level=config.accuracy_level,
        vision=config.vision,
        opset=config.opset,
    )


def tune_samples(config: ExportConfig) -> Sequence[Sample]:
    """The labelled maps that the temperature is fitted on; none without a dataset. Raises DatasetError."""
    if config.tune is None:
        return ()
    split = "tune" if (config.tune / DIES).is_file() else None
    samples = read_labelled(config.tune, split, spec=config.task.render)
    unknown = strangers(config.task, [sample.label for sample in samples])
    if unknown:
        raise DatasetError(
            f"{config.tune} has a map labelled {unknown[0]!r}, which is not one of the task's labels: "
            f"{', '.join(config.task.labels)}"
        )
    if not samples:
        raise DatasetError(f"{config.tune} has no labelled maps to fit the temperature on")
    return samples


def _provenance(config: ExportConfig) -> Provenance:
    for path in (config.checkpoint, config.tune):
        if path is not None and not path.exists():
            raise UsageError(f"{path} does not exist; check the path")
    inputs = {"checkpoint": folder_digest(config.checkpoint)}
    if config.tune is not None:
        inputs["tune"] = folder_digest(config.tune)
    settings: Mapping[str, Any] = {
        "task": config.task.to_dict(),
        "golden": config.golden,
        "accuracy_level": config.accuracy_level,
        "vision": config.vision,
        **({} if config.golden_maps is None else {"golden_maps": config.golden_maps}),
        **({} if config.opset == OPSET else {"opset": config.opset}),
        "name": config.name,
        "wm811k": config.wm811k,
    }
    if config.words:
        settings = {**settings, "words": True, "context": config.context}
    return Provenance("export", inputs=inputs, settings=settings, seed=config.seed)


def _check_replaceable(out: Path, wanted: Provenance, replace: bool) -> None:
    record = read_provenance(out) if (out / PROVENANCE).is_file() else {}
    if record.get("stage") != wanted.stage:
        raise UsageError(f"{out} exists and is not a bundle that was exported; choose another folder")
    if not replace:
        told = ", ".join(changes(record, wanted))
        raise UsageError(
            f"{out} holds a bundle of other inputs or settings ({told}); choose another folder, or put this "
            "one in its place with --replace"
        )
