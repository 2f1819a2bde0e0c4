"""The features graph: the vision tower by itself, for text that is generated."""

from __future__ import annotations

import onnx_ir as ir

from export.builder import Builder
from export.external import WeightFile
from export.families import graph_family
from export.graph import INPUT
from export.sequence import image_grid
from export.step import FEATURES
from export.vision import Normalisation
from export.weights import Weights
from wafervlm.task import Task


def features_graph(
    weights: Weights,
    normalisation: Normalisation,
    task: Task,
    *,
    integer_vision: bool = False,
    file: WeightFile | None = None,
) -> ir.Model:
    """The ONNX model from ``image`` (1, H, W, 3) uint8 to ``features`` (F, n + 1, width) float32, as the step
    graph reads them: the n image tokens' embeddings, then what DeepStack adds after each of the first
    layers, and after the n rows one of zeros. Weights go to ``file`` where it is given."""
    builder = Builder(file)
    image = ir.val(INPUT, ir.DataType.UINT8, [1, task.render.height, task.render.width, 3])
    batch = builder.constant("batch", [1, 1])
    vision = graph_family(weights.config).vision(
        builder, weights, image_grid(task, weights.config), integer_vision
    )
    embeddings, deepstack = vision.build(image, normalisation, batch)
    together = builder.op("Concat", embeddings, *deepstack, axis=0)
    features = builder.op("Pad", together, builder.constant("pads", [0, 0, 0, 0, 1, 0]))
    features.name, features.dtype = FEATURES, ir.DataType.FLOAT
    return builder.model([image], [features], "features")
