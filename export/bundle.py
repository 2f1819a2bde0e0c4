"""Writing a bundle: the graph, the golden maps with their reference, and a manifest of what was measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.parity import check_deployed, check_parity, graph_scores
from export.temperature import Fit, fit_temperature
from train.dataset import Sample
from wafervlm.bundle import EXTERNAL_SUFFIX, GOLDEN, Bundle, Graph, Manifest, open_bundle, write_manifest
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
    graph for what the vision tower is to compute in; the one in float32 must give the reference's scores."""

    build: Callable[[Vision], ir.Model]
    task: Task
    graph: Graph
    golden: Sequence[Sample]
    reference: NDArray[np.float64]
    tune: Sequence[Sample]
    provenance: tuple[dict[str, Any], ...]
    citations: tuple[str, ...]


def write_bundle(folder: Path, name: str, contents: Contents) -> Manifest:
    """Write the bundle into the empty ``folder``, run it as a station would, and record what came out.

    ``verify_tolerance`` is 1e-3 where the graph is deployed at exact accuracy; else twice the largest
    difference to the reference seen on the golden maps, and at least 1e-3. Raises GateError where the scores
    at exact accuracy are not the reference's, or the deployed graph's labels are others on more than a tenth
    of the golden maps.
    """
    save_model(contents.build("float32"), folder / contents.graph.file)
    maps = tuple(sample.wafer for sample in contents.golden)
    labels = tuple(sample.label for sample in contents.golden)
    write_golden(folder / GOLDEN, Golden(maps, labels, contents.reference.astype(np.float32)))
    draft = Manifest(
        name=name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        task=contents.task,
        graph=contents.graph,
        temperature=1.0,
        verify_tolerance=EXACT_TOLERANCE,
        provenance=contents.provenance,
        citations=contents.citations,
    )
    # A graph that computes in integers has no exact form: its twin in float32 is judged first, in its place.
    write_manifest(folder, replace(draft, graph=replace(contents.graph, vision="float32")))
    parity = _exact_parity(open_bundle(folder), contents)
    if contents.graph.vision != "float32":
        save_model(contents.build(contents.graph.vision), folder / contents.graph.file)
    write_manifest(folder, draft)
    return write_manifest(folder, _measured(open_bundle(folder), contents, parity))


def save_model(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; weights beyond 2 GB go into one file beside it."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = path.name + EXTERNAL_SUFFIX if size > SINGLE_FILE_BYTES else None
    path.with_name(path.name + EXTERNAL_SUFFIX).unlink(missing_ok=True)
    ir.save(model, path, external_data=external)


def _golden_images(contents: Contents) -> list[RgbImage]:
    return [render(sample.wafer, contents.task.render) for sample in contents.golden]


def _exact_parity(bundle: Bundle, contents: Contents) -> float:
    scores = graph_scores(bundle, _golden_images(contents), accuracy_level=EXACT_LEVEL)
    return check_parity(scores, contents.reference)


def _measured(bundle: Bundle, contents: Contents, exact: float) -> Manifest:
    parity, tolerance = {"exact_max_abs_difference": exact}, EXACT_TOLERANCE
    if not contents.graph.exact:
        deployed = graph_scores(
            bundle, _golden_images(contents), accuracy_level=contents.graph.accuracy_level
        )
        far = check_deployed(deployed, contents.reference)
        parity["deployed_max_abs_difference"] = far
        tolerance = max(EXACT_TOLERANCE, TOLERANCE_FACTOR * far)
    fit = _fit(bundle, contents)
    if fit is not None:
        parity |= {f"temperature_{name}": value for name, value in fit.figures().items()}
    return replace(
        bundle.manifest,
        temperature=fit.temperature if fit else 1.0,
        verify_tolerance=tolerance,
        parity=parity,
    )


def _fit(bundle: Bundle, contents: Contents) -> Fit | None:
    """The temperature fitted on the deployed graph's scores of the tune maps; None without such maps."""
    if not contents.tune:
        logger.warning("no tune maps were given: the temperature stays 1, and confidences are not calibrated")
        return None
    task = contents.task
    images = [render(sample.wafer, task.render) for sample in contents.tune]
    scores = graph_scores(bundle, images, accuracy_level=contents.graph.accuracy_level)
    truth = np.array([task.labels.index(sample.label) for sample in contents.tune])
    return fit_temperature(scores, truth)
