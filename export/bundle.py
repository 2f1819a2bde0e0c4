"""Writing a bundle: the graph, the golden maps with their reference, and a manifest of what was measured."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.external import WeightFile
from export.parity import check_deployed, check_parity, graph_scores
from export.temperature import Fit, fit_temperature
from export.thresholds import ClassFit, fit_classes
from export.words import WordsContents
from train.dataset import Sample
from wafervlm.answers import EVEN, truth_of
from wafervlm.bundle import EXTERNAL_SUFFIX, GOLDEN, MANIFEST, Bundle, Graph, Manifest, write_manifest
from wafervlm.golden import Golden, write_golden
from wafervlm.manifest import Vision
from wafervlm.render import RgbImage, render
from wafervlm.task import Task

logger = logging.getLogger(__name__)

EXACT_LEVEL, EXACT_TOLERANCE = 0, 1e-3
# The 8-bit kernels of other processors round elsewhere than this one's.
TOLERANCE_FACTOR = 2.0
# A protobuf message ends at 2 GiB.
SINGLE_FILE_BYTES = 1_900_000_000


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into a bundle besides what is measured on it: the golden samples with their ``reference``
    (N, L), and the ``tune`` samples for the temperature, of which there may be none. ``build`` makes the
    graph for what the vision tower is to compute in; the one in float32 must give the reference's scores.
    With ``streamed`` weights go to a file beside the graph while it is built; with ``words`` too, since the
    graphs that generate text read the same ones."""

    build: Callable[[Vision, WeightFile | None], ir.Model]
    task: Task
    graph: Graph
    golden: Sequence[Sample]
    reference: NDArray[np.float64]
    tune: Sequence[Sample]
    provenance: tuple[dict[str, Any], ...]
    citations: tuple[str, ...]
    streamed: bool = False
    words: WordsContents | None = None


def write_bundle(folder: Path, name: str, contents: Contents) -> Manifest:
    """Write the bundle into the empty ``folder``, run it as a station would, and record what came out.

    ``verify_tolerance`` is 1e-3 where the graph is deployed at exact accuracy; else twice the largest
    difference to the reference seen on the golden maps, and at least 1e-3. Raises GateError where the scores
    at exact accuracy are not the reference's, or the deployed graph's labels are others on more than a tenth
    of the golden maps.
    """
    write_graph(contents, "float32", folder)
    maps = tuple(sample.wafer for sample in contents.golden)
    labels = tuple(sample.label for sample in contents.golden)
    golden = Golden(maps, labels, contents.reference.astype(np.float32))
    write_golden(folder / GOLDEN, golden)
    draft = Manifest(
        name=name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        task=contents.task,
        graph=contents.graph,
        temperature=1.0,
        verify_tolerance=EXACT_TOLERANCE,
        provenance=contents.provenance,
        citations=contents.citations,
        words=contents.words.section if contents.words else None,
    )
    # A graph that computes in integers has no exact form: its twin in float32 is judged first, in its place.
    bundle = _written(folder, replace(draft, graph=replace(contents.graph, vision="float32")))
    images, tune = _images(contents.golden, contents.task), _images(contents.tune, contents.task)
    # What is deployed exactly is opened once, for golden and tune maps together.
    logger.info("running the graph at exact accuracy on %d maps", len(images))
    exact = graph_scores(
        bundle, images + tune if contents.graph.exact else images, accuracy_level=EXACT_LEVEL
    )
    parity = {"exact_max_abs_difference": check_parity(exact[: len(images)], contents.reference)}
    if contents.words is not None:
        parity["words_max_abs_difference"] = contents.words.check(bundle, images, contents.reference)
    if contents.graph.exact:
        return _finished(folder, golden, _measured(bundle.manifest, contents, exact, parity))
    if contents.graph.vision != "float32":
        write_graph(contents, contents.graph.vision, folder)
        bundle = _written(folder, draft)
    logger.info("running the graph as deployed on %d maps", len(images + tune))
    deployed = graph_scores(bundle, images + tune, accuracy_level=contents.graph.accuracy_level)
    return _finished(folder, golden, _measured(bundle.manifest, contents, deployed, parity))


def write_graph(contents: Contents, vision: Vision, folder: Path) -> None:
    """Build the graph and write it into ``folder``, its weights first where that is streamed."""
    path = folder / contents.graph.file
    if not contents.streamed and contents.words is None:
        save_model(contents.build(vision, None), path)
        return
    with WeightFile(path.with_name(path.name + EXTERNAL_SUFFIX)) as file:
        models = {path.name: contents.build(vision, file)}
        if contents.words is not None:
            models |= contents.words.build(contents.task, vision, file)
            contents.words.write_tokenizer(folder)
    for name, model in models.items():
        ir.save(model, folder / name)


def save_model(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; weights beyond 2 GB go into one file beside it."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = path.name + EXTERNAL_SUFFIX if size > SINGLE_FILE_BYTES else None
    path.with_name(path.name + EXTERNAL_SUFFIX).unlink(missing_ok=True)
    ir.save(model, path, external_data=external)


def _written(folder: Path, manifest: Manifest) -> Bundle:
    """The bundle in ``folder``, which this process wrote a moment ago, so that it need not be checked."""
    written = write_manifest(folder, manifest)
    return Bundle(folder, written, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())


def _finished(folder: Path, golden: Golden, manifest: Manifest) -> Manifest:
    """Write what was measured: beside the golden maps too, whose digest then covers it."""
    write_golden(folder / GOLDEN, golden, manifest)
    return write_manifest(folder, manifest)


def _images(samples: Sequence[Sample], task: Task) -> list[RgbImage]:
    return [render(sample.wafer, task.render) for sample in samples]


def _measured(
    manifest: Manifest, contents: Contents, scores: NDArray[np.float32], parity: dict[str, float]
) -> Manifest:
    """``manifest`` with what the ``scores`` of golden and then tune maps, as deployed, come to."""
    golden, tune = np.split(scores, [len(contents.golden)])
    tolerance = EXACT_TOLERANCE
    if not contents.graph.exact:
        far = check_deployed(golden, contents.reference, contents.task)
        parity["deployed_max_abs_difference"] = far
        tolerance = max(EXACT_TOLERANCE, TOLERANCE_FACTOR * far)
    fit = _fit(tune, contents)
    if fit is not None:
        parity |= {f"temperature_{name}": value for name, value in fit.figures().items()}
    return replace(
        manifest,
        temperature=fit.temperature if fit else 1.0,
        threshold=fit.threshold if isinstance(fit, ClassFit) else EVEN,
        verify_tolerance=tolerance,
        parity=parity,
    )


def _fit(scores: NDArray[np.float32], contents: Contents) -> Fit | ClassFit | None:
    """The temperature fitted on the deployed graph's ``scores`` of the tune maps; None without such maps."""
    if not contents.tune:
        logger.warning("no tune maps were given: the temperature stays 1, and confidences are not calibrated")
        return None
    if contents.task.multi_label:
        return fit_classes(scores, truth_of(contents.task, [sample.label for sample in contents.tune]))
    truth = np.array([contents.task.labels.index(sample.label) for sample in contents.tune])
    fit = fit_temperature(scores, truth)
    if fit.at_bound:
        logger.warning(
            "the temperature's fit ran to its bound, %.3g: the %d tune maps do not settle it, since %s; look "
            "at their labels, or give more of them",
            fit.temperature,
            fit.maps,
            "most answers are wrong" if fit.temperature > 1 else "nearly all are answered right",
        )
    return fit
