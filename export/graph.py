"""The classify graph: one image in, one log-probability per label out, in a single forward pass."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from export.builder import OPSET, Builder
from export.external import WeightFile
from export.families import graph_family
from export.head import label_head
from export.sequence import image_grid, plan_sequence
from export.text import TextCore
from export.vision import Normalisation
from export.weights import Weights
from train.tree import label_tree
from wafervlm.task import Task

INPUT, OUTPUT = "image", "label_log_probs"


def classify_graph(
    weights: Weights,
    tokenizer: Any,
    normalisation: Normalisation,
    task: Task,
    *,
    integer_vision: bool = False,
    file: WeightFile | None = None,
    opset: int = OPSET,
) -> ir.Model:
    """The ONNX model of ``task``: ``image`` (batch, H, W, 3) uint8 to ``label_log_probs`` (batch, L) float32.

    Standard operators of ``opset`` only, nothing that depends on data. With ``integer_vision`` the linear
    layers of the vision tower compute in 8-bit integers, scaled over the batch. Weights go to ``file`` where
    it is given. Raises TaskError where the image size does not fit the model or the labels cannot be told
    apart.
    """
    grid = image_grid(task, weights.config)
    tree = label_tree(tokenizer, task)
    sequence = plan_sequence(tokenizer, task, tree, weights.config)
    builder = Builder(file, opset)
    shape = ["batch", task.render.height, task.render.width, 3]
    image = ir.val(INPUT, ir.DataType.UINT8, shape)
    batch = _batch_shape(builder, image)
    vision = graph_family(weights.config).vision(builder, weights, grid, integer_vision)
    embeddings, deepstack = vision.build(image, normalisation, batch)
    hidden = TextCore(builder, weights, sequence).build(embeddings, deepstack, batch)
    output = label_head(builder, weights, tree, hidden)
    output.name = OUTPUT
    output.shape, output.dtype = ir.Shape(["batch", len(task.labels)]), ir.DataType.FLOAT
    return builder.model([image], [output], task.name)


def _batch_shape(builder: Builder, image: ir.Value) -> ir.Value:
    """(B, 1) as a shape, with which constants are repeated per image."""
    if not builder.has_attention:
        # Parsers of that time let bytes be cast and nothing else.
        image = builder.op("Cast", image, to=ir.DataType.FLOAT)
    count = builder.op("Shape", image, start=0, end=1)
    return builder.op("Concat", count, builder.constant("one", [1]), axis=0)
