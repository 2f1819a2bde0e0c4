"""The vision tower as a static graph: uint8 pixels in, image embeddings and DeepStack features out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, Qwen3VLVisionRotaryEmbedding
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from export.builder import Builder
from export.rotary import Rotary
from export.weights import Array, Dense, Integer, Linear, Weights
from wafervlm.errors import CheckpointError

ROOT = "model.visual"
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How pixel values of 0 to 255 become the model's: ``(pixel * rescale - mean) / std`` per channel."""

    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


class VisionTower:
    """Writes the vision tower of a checkpoint for one image size.

    ``grid`` is (frames, rows, columns) of patches. Hidden states are 2-D, (B * N, width) for N patches in
    merge-block order, so that every linear layer is one Gemm. With ``integer`` the linear layers, save the
    patch embedding, compute in 8-bit integers.
    """

    def __init__(
        self, builder: Builder, weights: Weights, grid: tuple[int, int, int], integer: bool = False
    ) -> None:
        self._b, self._weights, self._config = builder, weights, weights.config.vision_config
        self._integer = integer
        self._grid = torch.tensor([grid])
        self._rows, self._columns = grid[1:]
        self._patches = self._rows * self._columns

    def build(
        self, image: ir.Value, normalisation: Normalisation, batch: ir.Value
    ) -> tuple[ir.Value, list[ir.Value]]:
        """From ``image`` (B, H, W, 3) uint8: embeddings (B, n, text width) and the DeepStack features, each
        of that shape. ``batch`` is the graph's (B, 1) shape."""
        with self._b.scope("vision"):
            rotary = self._rotary(batch)
            hidden = self._embed(image, normalisation)
            deepstack = []
            for index in range(self._config.depth):
                with self._b.scope(f"block.{index}"):
                    hidden = self._block(hidden, f"{ROOT}.blocks.{index}", rotary)
                if index in self._config.deepstack_visual_indexes:
                    place = self._config.deepstack_visual_indexes.index(index)
                    with self._b.scope(f"deepstack.{place}"):
                        deepstack.append(self._merger(hidden, f"{ROOT}.deepstack_merger_list.{place}", True))
            with self._b.scope("merger"):
                return self._merger(hidden, f"{ROOT}.merger", False), deepstack

    def _embed(self, image: ir.Value, normalisation: Normalisation) -> ir.Value:
        b, patch, merge = self._b, self._config.patch_size, self._config.spatial_merge_size
        blocks = (self._rows // merge, merge, patch, self._columns // merge, merge, patch * 3)
        pixels = b.reshape(b.op("Cast", image, to=ir.DataType.FLOAT), -1, *blocks)
        patches = b.op("Transpose", pixels, perm=[0, 1, 4, 2, 5, 3, 6])
        layer = folded_patch_embedding(
            self._weights.array(f"{ROOT}.patch_embed.proj.weight"),
            self._weights.array(f"{ROOT}.patch_embed.proj.bias"),
            normalisation,
        )
        hidden = b.linear(b.reshape(patches, -1, patch * patch * 3), "patches", layer, flat=True)
        placed = b.op(
            "Add",
            b.reshape(hidden, -1, self._patches, self._config.hidden_size),
            b.constant("positions", self._position_embedding()),
        )
        return b.reshape(placed, -1, self._config.hidden_size)

    def _position_embedding(self) -> Array:
        """The learned positions resampled to this grid, (N, width), as the model's own forward does."""
        table = torch.from_numpy(self._weights.array(f"{ROOT}.pos_embed.weight"))
        with torch.device("meta"):
            model = Qwen3VLVisionModel(self._config)
        indices, shares = get_vision_interpolation_indices_and_weights(
            self._grid,
            num_grid_per_side=model.num_grid_per_side,
            mode=model.interpolation_mode,
            align_corners=model.interpolation_align_corners,
            spatial_merge_size=self._config.spatial_merge_size,
        )
        positions: Array = (table[indices] * shares[:, :, None]).sum(1).numpy()
        return positions

    def _rotary(self, batch: ir.Value) -> Rotary:
        positions = get_vision_position_ids(self._grid, self._config.spatial_merge_size)
        cos, sin = Qwen3VLVisionRotaryEmbedding(self._config)(torch.zeros(1), positions)
        return Rotary(self._b, cos.numpy(), sin.numpy(), batch)

    def _block(self, hidden: ir.Value, name: str, rotary: Rotary) -> ir.Value:
        b = self._b
        attended = self._attention(self._norm(hidden, f"{name}.norm1"), f"{name}.attn", rotary)
        hidden = b.op("Add", hidden, attended)
        inner = self._linear(self._norm(hidden, f"{name}.norm2"), f"{name}.mlp.linear_fc1")
        inner = gelu(b, inner, self._config.hidden_act)
        return b.op("Add", hidden, self._linear(inner, f"{name}.mlp.linear_fc2"))

    def _attention(self, x: ir.Value, name: str, rotary: Rotary) -> ir.Value:
        b, width, heads = self._b, self._config.hidden_size, self._config.num_heads
        qkv = self._linear(x, f"{name}.qkv")
        qk, v = b.split(b.reshape(qkv, -1, self._patches, 3 * width), 2 * width, width)
        q, k = b.split(rotary.turn(qk, 2 * heads), width, width)
        scale = (width // heads) ** -0.5
        out = b.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=scale)
        return self._linear(b.reshape(out, -1, width), f"{name}.proj")

    def _merger(self, hidden: ir.Value, name: str, normalise_merged: bool) -> ir.Value:
        """Four neighbouring patches to one image token; the norm stands before or after they are joined."""
        b, width = self._b, self._config.hidden_size * self._config.spatial_merge_size**2
        if normalise_merged:
            x = self._norm(b.reshape(hidden, -1, width), f"{name}.norm")
        else:
            x = b.reshape(self._norm(hidden, f"{name}.norm"), -1, width)
        x = self._linear(b.op("Gelu", self._linear(x, f"{name}.linear_fc1")), f"{name}.linear_fc2")
        return b.reshape(
            x, -1, self._patches * self._config.hidden_size // width, self._config.out_hidden_size
        )

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        layer: Linear | Integer = self._weights.linear(name)
        if self._integer and isinstance(layer, Dense):
            layer = Integer.of(layer)
        return self._b.linear(x, name.rsplit(".", 1)[-1], layer, flat=True)

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        with self._b.scope(name.rsplit(".", 1)[-1]):
            scale = self._b.weight("weight", self._weights.array(f"{name}.weight"))
            shift = self._b.weight("bias", self._weights.array(f"{name}.bias"))
            return self._b.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=EPSILON)


def gelu(builder: Builder, x: ir.Value, activation: str) -> ir.Value:
    """The activation that the configuration names. Raises CheckpointError for one that is not a GELU."""
    approximations = {"gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu": "none"}
    if activation not in approximations:
        raise CheckpointError(
            f"the vision tower's activation {activation!r} is not one of {', '.join(approximations)}"
        )
    return builder.op("Gelu", x, approximate=approximations[activation])


def folded_patch_embedding(weight: Array, bias: Array, normalisation: Normalisation) -> Dense:
    """The patch embedding on raw pixels: a (patch * patch * 3, width) layer for patches in (row, column,
    channel) order.

    ``weight`` (width, 3, frames, patch, patch) reads the same still image in each frame, so the frames'
    weights are summed; the pixels' normalisation is folded into weight and bias in float64.
    """
    summed = weight.astype(np.float64).sum(axis=2)  # (width, 3, patch, patch)
    mean, std = np.array(normalisation.mean), np.array(normalisation.std)
    scaled = summed * (normalisation.rescale / std)[:, None, None]
    shift = -(summed * (mean / std)[:, None, None]).sum(axis=(1, 2, 3))
    rows: NDArray[np.float64] = scaled.transpose(2, 3, 1, 0).reshape(-1, len(bias))
    return Dense(rows.astype(np.float32), (bias + shift).astype(np.float32))
