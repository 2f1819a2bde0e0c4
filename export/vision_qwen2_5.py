"""The vision tower of Qwen2.5-VL: attention in windows, RMSNorm, gated MLP.

The patches are put in the order of their windows before the first block and the image tokens back in the
image's order after the last, so that a window is a run of patches. Where all windows of an image are of one
size, attention runs over each by itself; where those at the border are smaller, a mask parts them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionRotaryEmbedding
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from export.builder import Builder
from export.operators import HIDDEN, check_silu, gated, rms_norm
from export.rotary import Rotary
from export.vision import EPSILON, ROOT, Normalisation, VisionTower
from export.weights import Array, Weights


class Qwen2_5Vision(VisionTower):  # noqa: N801
    """Most blocks see one window at a time; those of ``fullatt_block_indexes`` see the whole image."""

    def __init__(
        self, builder: Builder, weights: Weights, grid: tuple[int, int, int], integer: bool = False
    ) -> None:
        super().__init__(builder, weights, grid, integer)
        check_silu(self._config.hidden_act, "the vision tower")
        order, bounds = get_vision_window_index(
            self._grid,
            spatial_merge_size=self._config.spatial_merge_size,
            window_size=self._config.window_size,
            patch_size=self._config.patch_size,
        )
        self._order: NDArray[np.int64] = order.numpy()
        self._reorders = bool((np.diff(self._order) != 1).any())
        self._windows = bounds.diff().numpy()

    def build(
        self, image: ir.Value, normalisation: Normalisation, batch: ir.Value
    ) -> tuple[ir.Value, list[ir.Value]]:
        """See VisionTower."""
        with self._b.scope("vision"):
            rotary = self._rotary(batch)
            span, mask = self._window_attention()
            hidden = self._embed_patches(image, normalisation, self._order if self._reorders else None)
            for index in range(self._config.depth):
                whole = index in self._config.fullatt_block_indexes
                with self._b.scope(f"block.{index}"):
                    name = f"{ROOT}.blocks.{index}"
                    hidden = self._block(hidden, name, rotary, *((None, None) if whole else (span, mask)))
            with self._b.scope("merger"):
                return self._merger(hidden, f"{ROOT}.merger"), []

    def _rotary(self, batch: ir.Value) -> Rotary:
        positions = get_vision_position_ids(self._grid, self._config.spatial_merge_size)
        tables = Qwen2_5_VLVisionRotaryEmbedding(self._config)(torch.zeros(1), positions)
        cos, sin = (self._by_window(table.numpy()) for table in tables)
        return Rotary(self._b, cos, sin, batch)

    def _by_window(self, rows: Array) -> Array:
        """``rows`` (N, width) of the patches in the order of their windows."""
        tokens = rows.reshape(len(self._order), -1, rows.shape[-1])
        ordered: Array = tokens[self._order].reshape(rows.shape)
        return ordered

    def _window_attention(self) -> tuple[int | None, ir.Value | None]:
        """How many patches attend to one another, and the mask (N, N) where that is not the same for all."""
        if len(set(self._windows)) == 1:
            return int(self._windows[0]), None
        window = np.repeat(np.arange(len(self._windows)), self._windows)
        apart = window[:, None] != window[None, :]
        return None, self._b.constant("window_mask", np.where(apart, np.float32(HIDDEN), np.float32(0)))

    def _block(
        self, hidden: ir.Value, name: str, rotary: Rotary, span: int | None, mask: ir.Value | None
    ) -> ir.Value:
        b, inner = self._b, self._config.intermediate_size
        x = self._norm(hidden, f"{name}.norm1")
        hidden = b.op("Add", hidden, self._attention(x, f"{name}.attn", rotary, span, mask))
        x = self._norm(hidden, f"{name}.norm2")
        both = self._linears(x, "gate_up", [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"])
        gate, up = b.split(both, inner, inner)
        return b.op("Add", hidden, self._linear(gated(b, gate, up), f"{name}.mlp.down_proj"))

    def _merger(self, hidden: ir.Value, name: str) -> ir.Value:
        """Four neighbouring patches to one image token, and the tokens back in the image's order."""
        b, merged = self._b, self._config.hidden_size * self._config.spatial_merge_size**2
        x = b.reshape(self._norm(hidden, f"{name}.ln_q"), -1, merged)
        x = self._linear(b.op("Gelu", self._linear(x, f"{name}.mlp.0")), f"{name}.mlp.2")
        x = b.reshape(x, -1, len(self._order), self._config.out_hidden_size)
        if not self._reorders:
            return x
        return b.op("Gather", x, b.constant("image_order", np.argsort(self._order)), axis=1)

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        return rms_norm(self._b, x, name.rsplit(".", 1)[-1], self._weights.array(f"{name}.weight"), EPSILON)
