"""The vision tower as a static graph: uint8 pixels in, image embeddings and DeepStack features out.

Here is what the families' towers share; each has a file of its own beside this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from export.builder import Builder
from export.operators import attention
from export.rotary import Rotary
from export.weights import Array, Dense, Integer, Linear, Weights, side_by_side

ROOT = "model.visual"
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Normalisation:
    """How pixel values of 0 to 255 become the model's: ``(pixel * rescale - mean) / std`` per channel."""

    rescale: float = 1 / 255
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


class VisionTower(ABC):
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

    @abstractmethod
    def build(
        self, image: ir.Value, normalisation: Normalisation, batch: ir.Value
    ) -> tuple[ir.Value, list[ir.Value]]:
        """From ``image`` (B, H, W, 3) uint8: embeddings (B, n, text width) and the DeepStack features, each
        of that shape, none where the family has no DeepStack. ``batch`` is the graph's (B, 1) shape."""

    def _embed_patches(
        self, image: ir.Value, normalisation: Normalisation, order: NDArray[np.int64] | None = None
    ) -> ir.Value:
        """Patches (B * N, width); ``order`` (n,) is that of the merge blocks, where it is not the image's."""
        b, patch, merge = self._b, self._config.patch_size, self._config.spatial_merge_size
        blocks = (self._rows // merge, merge, patch, self._columns // merge, merge, patch * 3)
        pixels = b.reshape(b.op("Cast", image, to=ir.DataType.FLOAT), -1, *blocks)
        patches = b.op("Transpose", pixels, perm=[0, 1, 4, 2, 5, 3, 6])
        if order is not None:
            tokens, values = self._patches // merge**2, merge**2 * patch**2 * 3
            merged = b.reshape(patches, -1, tokens, values)
            patches = b.op("Gather", merged, b.constant("order", order), axis=1)
        name = f"{ROOT}.patch_embed.proj"
        weight = self._weights.array(f"{name}.weight")
        bias = (
            self._weights.array(f"{name}.bias")
            if self._weights.has(f"{name}.bias")
            else np.zeros(len(weight), dtype=np.float32)
        )
        layer = folded_patch_embedding(weight, bias, normalisation)
        return b.linear(b.reshape(patches, -1, patch * patch * 3), "patches", layer, flat=True)

    def _attention(
        self,
        x: ir.Value,
        name: str,
        rotary: Rotary,
        span: int | None = None,
        mask: ir.Value | None = None,
    ) -> ir.Value:
        """Self-attention over each ``span`` patches, all of an image without it; ``mask`` (N, N) is added."""
        b, width, heads = self._b, self._config.hidden_size, self._config.num_heads
        qkv = self._linear(x, f"{name}.qkv")
        qk, v = b.split(b.reshape(qkv, -1, self._patches, 3 * width), 2 * width, width)
        q, k = b.split(rotary.turn(qk, 2 * heads), width, width)
        if span is not None:
            q, k, v = (b.reshape(part, -1, span, width) for part in (q, k, v))
        out = attention(b, q, k, v, mask, heads=heads, kv_heads=heads, head_dim=width // heads)
        return self._linear(b.reshape(out, -1, width), f"{name}.proj")

    def _linear(self, x: ir.Value, name: str) -> ir.Value:
        return self._product(x, name.rsplit(".", 1)[-1], self._weights.linear(name))

    def _linears(self, x: ir.Value, label: str, names: list[str]) -> ir.Value:
        """The outputs of several layers side by side, as one product called ``label``."""
        return self._product(x, label, side_by_side([self._weights.linear(name) for name in names]))

    def _product(self, x: ir.Value, label: str, layer: Linear) -> ir.Value:
        if self._integer and isinstance(layer, Dense):
            return self._b.linear(x, label, Integer.of(layer), flat=True)
        return self._b.linear(x, label, layer, flat=True)


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
