"""The vision tower of Qwen3-VL: learned positions resampled to the grid, LayerNorm, GELU, DeepStack."""

from __future__ import annotations

import onnx_ir as ir
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, Qwen3VLVisionRotaryEmbedding
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from export.operators import gelu
from export.rotary import Rotary
from export.vision import EPSILON, ROOT, Normalisation, VisionTower
from export.weights import Array


class Qwen3Vision(VisionTower):
    """Every block sees the whole image; after some, features are taken for the first text layers."""

    def build(
        self, image: ir.Value, normalisation: Normalisation, batch: ir.Value
    ) -> tuple[ir.Value, list[ir.Value]]:
        """See VisionTower."""
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
        b, width = self._b, self._config.hidden_size
        placed = b.op(
            "Add",
            b.reshape(self._embed_patches(image, normalisation), -1, self._patches, width),
            b.constant("positions", self._position_embedding()),
        )
        return b.reshape(placed, -1, width)

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

    def _norm(self, x: ir.Value, name: str) -> ir.Value:
        with self._b.scope(name.rsplit(".", 1)[-1]):
            scale = self._b.weight("weight", self._weights.array(f"{name}.weight"))
            shift = self._b.weight("bias", self._weights.array(f"{name}.bias"))
            return self._b.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=EPSILON)
