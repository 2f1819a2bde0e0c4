"""The label head: from the hidden states where labels branch to one log-probability per label."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.builder import Builder
from export.operators import HIDDEN, rms_norm
from export.weights import Array, Dense, Weights
from train.tree import LabelTree


def label_head(builder: Builder, weights: Weights, tree: LabelTree, hidden: ir.Value) -> ir.Value:
    """From ``hidden`` (B, R, width) at the R branching nodes to log-probabilities (B, L) in label order.

    Only the rows of the output head that some label needs are read. The logits of a node are normalised
    over its own branches; a label's value is the sum along its path, so its exponentials sum to 1.
    """
    with builder.scope("head"):
        norm = weights.array("model.language_model.norm.weight")
        hidden = rms_norm(builder, hidden, "norm", norm, weights.config.text_config.rms_norm_eps)
        branching = [i for i, node in enumerate(tree.nodes) if len(node.branches) > 1]
        tokens = sorted({token for i in branching for token in tree.nodes[i].branches})
        logits = builder.linear(hidden, "labels", Dense(_output_rows(weights, tokens)))
        own = np.full((len(branching), len(tokens)), HIDDEN, dtype=np.float32)
        for row, i in enumerate(branching):
            own[row, [tokens.index(token) for token in tree.nodes[i].branches]] = 0
        masked = builder.op("Add", logits, builder.constant("branches", own))
        steps = builder.op("LogSoftmax", masked, axis=-1)
        return _sum_along_paths(builder, steps, _flat_paths(tree, branching, tokens), own.size)


def _output_rows(weights: Weights, tokens: list[int]) -> Array:
    """(width, U): the output head's columns for ``tokens``; the embeddings where the two are tied."""
    name = "lm_head.weight"
    if not weights.has(name):
        name = "model.language_model.embed_tokens.weight"
    return np.ascontiguousarray(weights.rows(name, tokens).T)


def _flat_paths(tree: LabelTree, branching: list[int], tokens: list[int]) -> list[list[int]]:
    """Per label, the places of its steps in the flattened (R, U) log-probabilities."""
    return [
        [
            branching.index(node) * len(tokens) + tokens.index(tree.nodes[node].branches[step])
            for node, step in path
        ]
        for path in tree.paths
    ]


def _sum_along_paths(builder: Builder, steps: ir.Value, paths: list[list[int]], size: int) -> ir.Value:
    longest = max(len(path) for path in paths)
    places = np.zeros((len(paths), longest), dtype=np.int64)
    taken = np.zeros((len(paths), longest), dtype=np.float32)
    for label, path in enumerate(paths):
        places[label, : len(path)] = path
        taken[label, : len(path)] = 1
    flat = builder.reshape(steps, -1, size)
    along = builder.op("Gather", flat, builder.constant("paths", places), axis=1)  # (B, L, longest)
    along = builder.op("Mul", along, builder.constant("taken", taken))
    return builder.op("ReduceSum", along, builder.constant("last_axis", [-1]), keepdims=0)
