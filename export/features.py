"""The features graph: the vision tower by itself, for text that is generated."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from export.builder import OPSET, Builder
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
    opset: int = OPSET,
) -> ir.Model:
    """The ONNX model from ``image`` (1, H, W, 3) uint8 to ``features`` (F, n + 1, width) float32, as the step
    graph reads them: the n image tokens' embeddings, then what DeepStack adds after each of the first
    layers, and after the n rows one of zeros. Operators are those of ``opset``; weights go to ``file`` where
    it is given."""
    builder = Builder(file, opset)
    image = ir.val(INPUT, ir.DataType.UINT8, [1, task.render.height, task.render.width, 3])
    batch = builder.constant("batch", [1, 1])
    grid = image_grid(task, weights.config)
    tokens = prod(grid) // weights.config.vision_config.spatial_merge_size**2
    vision = graph_family(weights.config).vision(builder, weights, grid, integer_vision)
    embeddings, deepstack = vision.build(image, normalisation, batch)
    together = builder.op("Concat", embeddings, *deepstack, axis=0)
    features = builder.op("Pad", together, builder.constant("pads", [0, 0, 0, 0, 1, 0]))
    features.name, features.dtype = FEATURES, ir.DataType.FLOAT
    features.shape = ir.Shape([1 + len(deepstack), tokens + 1, weights.config.text_config.hidden_size])
    return builder.model([image], [features], "features")
