"""The export stage: a checkpoint and a task in, a bundle out."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from export.bundle import Contents, write_bundle
from export.chain import citations_of, collect_chain
from export.golden import chosen_golden, synthetic_golden
from export.graph import classify_graph
from export.parity import load_reference, reference_scores
from export.processor import normalisation_of
from export.weights import Weights
from train.artefact import (
    PROVENANCE,
    Provenance,
    folder_digest,
    is_complete,
    read_provenance,
    write_provenance,
    writing,
)
from train.dataset import DIES, Sample, read_labelled
from train.loading import check_image_size, load_processor
from wafervlm.bundle import Graph, Manifest, open_bundle
from wafervlm.errors import CheckpointError, DatasetError, UsageError
from wafervlm.manifest import VISIONS, Vision
from wafervlm.render import render
from wafervlm.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """What to export."""

    checkpoint: Path
    """Hugging Face folder of a Qwen3-VL: full precision, or quantized in the AutoGPTQ v1 layout."""
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
    name: str = ""
    """Name of the bundle; by default the task's."""
    wm811k: bool | None = None
    """Whether the model was trained on WM-811K, whose citations then go in; None: as provenance says."""
    seed: int = 0
    """Of the golden maps."""
    ancestors: tuple[Path, ...] = ()
    """Folders the checkpoint was made from that do not lie beside it; their records go in."""

    def __post_init__(self) -> None:
        if self.golden == "tune" and self.tune is None:
            raise UsageError("golden maps are to come from the tune maps, but none are given; give --dataset")
        if self.vision not in VISIONS:
            raise UsageError(f"vision is {self.vision!r}; it must be one of {', '.join(VISIONS)}")
        if self.accuracy_level not in (0, 4):
            raise UsageError(
                f"accuracy level {self.accuracy_level} is neither 0 (exact) nor 4 (8-bit integers)"
            )


def export(config: ExportConfig, out: Path) -> tuple[Manifest, bool]:
    """Write the bundle ``out``; return its manifest, and whether it was written now.

    A complete ``out`` of the same inputs and settings is left as it is, one of others is replaced. Raises
    CheckpointError, TaskError, DatasetError, UsageError, and GateError where the graph's scores are not the
    checkpoint's; nothing is written then.
    """
    out = Path(out)
    provenance = _provenance(config)
    if is_complete(out, provenance):
        return open_bundle(out).manifest, False
    if out.exists() and not _is_export(out):
        raise UsageError(f"{out} exists and is not a bundle that was exported; choose another folder")
    contents = _contents(config)
    with writing(out, overwrite=True) as work:
        write_provenance(work, provenance)
        manifest = write_bundle(work, config.name or config.task.name, contents)
    return manifest, True


def build_model(weights: Weights, task: Task, vision: Vision = "float32") -> ir.Model:
    """The classify graph of the checkpoint behind ``weights`` for ``task``."""
    processor = load_processor(weights.path)
    check_image_size(processor, task.render.height, task.render.width)
    return classify_graph(
        weights, processor.tokenizer, normalisation_of(processor), task, integer_vision=vision == "int8"
    )


def _contents(config: ExportConfig) -> Contents:
    task = config.task
    weights = Weights(config.checkpoint)
    tune = _tune_samples(config)
    golden = (
        chosen_golden(tune, task, config.seed)
        if config.golden == "tune"
        else synthetic_golden(task, config.seed)
    )
    logger.info("computing the reference scores of %d golden maps, label by label", len(golden))
    reference = load_reference(config.checkpoint, bool(weights.quantization))
    data = (config.tune,) if config.tune is not None else ()
    records = collect_chain(config.checkpoint, (*config.ancestors, *data))
    return Contents(
        build=functools.partial(build_model, weights, task),
        task=task,
        graph=_graph(weights, config),
        golden=golden,
        reference=reference_scores(reference, task, [render(sample.wafer, task.render) for sample in golden]),
        tune=tune,
        provenance=records,
        citations=citations_of(records, config.wm811k),
    )


def _graph(weights: Weights, config: ExportConfig) -> Graph:
    if not weights.quantization:
        return Graph(precision="float32", group_size=None, accuracy_level=0, vision=config.vision)
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
    )


def _tune_samples(config: ExportConfig) -> Sequence[Sample]:
    if config.tune is None:
        return ()
    split = "tune" if (config.tune / DIES).is_file() else None
    samples = read_labelled(config.tune, split, spec=config.task.render)
    stranger = next((sample.label for sample in samples if sample.label not in config.task.labels), None)
    if stranger is not None:
        raise DatasetError(
            f"{config.tune} has a map labelled {stranger!r}, which is not one of the task's labels: "
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
        "name": config.name,
        "wm811k": config.wm811k,
    }
    return Provenance("export", inputs=inputs, settings=settings, seed=config.seed)


def _is_export(out: Path) -> bool:
    return (out / PROVENANCE).is_file() and read_provenance(out).get("stage") == "export"
