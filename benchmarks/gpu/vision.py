"""The vision towers of the static pass: pixels in, image embeddings and DeepStack features out.

The computation is that of the checkpoint for one image size: grids, positions, rotary tables and windows are
constants. Sizes that no matrix kernel is fast at are filled up with zeros, which changes no value.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from benchmarks.gpu.linear import Form, Linear
from benchmarks.gpu.plan import HIDDEN
from benchmarks.gpu.text import Rotation
from wafervlm.errors import CheckpointError

MULTIPLE = 64


class Pixels(nn.Module):
    """(B, H, W, 3) uint8 to patches (B * N, patch * patch * 3), normalised, in the tower's order.

    ``order`` (N / merge^2,) is the place of each block of merge x merge patches, None where it stays."""

    def __init__(
        self, processor: Any, vision: Any, grid: tuple[int, int], order: torch.Tensor | None
    ) -> None:
        super().__init__()
        device, self.dtype = vision.patch_embed.proj.weight.device, vision.patch_embed.proj.weight.dtype
        self.patch, self.merge = vision.config.patch_size, vision.config.spatial_merge_size
        self.rows, self.columns = grid
        images = processor.image_processor
        std = torch.tensor(images.image_std, dtype=torch.float64)
        mean = torch.tensor(images.image_mean, dtype=torch.float64)
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        self.order: torch.Tensor | None
        self.register_buffer("scale", (images.rescale_factor / std).float().to(device))
        self.register_buffer("shift", (-mean / std).float().to(device))
        self.register_buffer("order", order)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch, patch, merge = len(images), self.patch, self.merge
        x = (images * self.scale + self.shift).to(self.dtype)
        x = x.view(batch, self.rows // merge, merge, patch, self.columns // merge, merge, patch * 3)
        x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, -1, merge * merge, patch * patch * 3)
        if self.order is not None:
            x = x[:, self.order]
        return x.reshape(-1, patch * patch * 3)


class Attention(nn.Module):
    """Attention among the N patches of each image, with ``mask`` (1, 1, N, N) or None."""

    def __init__(self, source: Any, form: Form) -> None:
        super().__init__()
        self.heads = source.num_heads
        self.qkv = _linear(form, source.qkv)
        self.proj = _linear(form, source.proj)

    def forward(
        self, x: torch.Tensor, batch: int, rotation: Rotation, mask: torch.Tensor | None
    ) -> torch.Tensor:
        qkv = self.qkv(x).view(batch, -1, 3 * self.heads, x.shape[-1] // self.heads)
        qk, v = qkv.split([2 * self.heads, self.heads], dim=2)
        q, k = rotation(qk).split([self.heads, self.heads], dim=2)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        return self.proj(out.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class Qwen3Block(nn.Module):
    """Layer norm, attention, layer norm, GELU MLP."""

    def __init__(self, source: Any, form: Form) -> None:
        super().__init__()
        self.norm1, self.norm2 = copy.deepcopy(source.norm1), copy.deepcopy(source.norm2)
        self.attention = Attention(source.attn, form)
        self.fc1, self.fc2 = _linear(form, source.mlp.linear_fc1), _linear(form, source.mlp.linear_fc2)
        self.activation = source.mlp.act_fn

    def forward(
        self, hidden: torch.Tensor, batch: int, rotation: Rotation, mask: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = hidden + self.attention(self.norm1(hidden), batch, rotation, mask)
        return hidden + self.fc2(self.activation(self.fc1(self.norm2(hidden))))  # type: ignore[no-any-return]


class Qwen2Block(nn.Module):
    """RMS norm, attention, RMS norm, gated MLP."""

    def __init__(self, source: Any, form: Form) -> None:
        super().__init__()
        self.epsilon = source.norm1.variance_epsilon
        self.norm1: torch.Tensor
        self.norm2: torch.Tensor
        self.register_buffer("norm1", source.norm1.weight.detach().clone())
        self.register_buffer("norm2", source.norm2.weight.detach().clone())
        self.attention = Attention(source.attn, form)
        self.gate_up, self.down = _gated(form, source.mlp)

    def forward(
        self, hidden: torch.Tensor, batch: int, rotation: Rotation, mask: torch.Tensor | None
    ) -> torch.Tensor:
        width = hidden.shape[-1:]
        x = F.rms_norm(hidden, width, self.norm1, self.epsilon)
        hidden = hidden + self.attention(x, batch, rotation, mask)
        gate, up = self.gate_up(F.rms_norm(hidden, width, self.norm2, self.epsilon)).chunk(2, dim=-1)
        return hidden + self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Qwen3Merger(nn.Module):
    """Blocks of patches to image tokens; the norm stands before or after patches are joined."""

    def __init__(self, source: Any, form: Form) -> None:
        super().__init__()
        self.norm, self.width = copy.deepcopy(source.norm), source.hidden_size
        self.after = source.use_postshuffle_norm
        self.fc1, self.fc2 = _linear(form, source.linear_fc1), _linear(form, source.linear_fc2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        joined = hidden.view(-1, self.width)
        x = self.norm(joined) if self.after else self.norm(hidden).view(-1, self.width)
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Qwen2Merger(nn.Module):
    """The same with an RMS norm before patches are joined."""

    def __init__(self, source: Any, form: Form) -> None:
        super().__init__()
        self.width, self.epsilon = source.hidden_size, source.ln_q.variance_epsilon
        self.norm: torch.Tensor
        self.register_buffer("norm", source.ln_q.weight.detach().clone())
        self.fc1, self.fc2 = _linear(form, source.mlp[0]), _linear(form, source.mlp[2])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = F.rms_norm(hidden, hidden.shape[-1:], self.norm, self.epsilon).view(-1, self.width)
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class Qwen3Tower(nn.Module):
    """Qwen3-VL's tower for images of ``grid`` (rows, columns) patches."""

    def __init__(self, network: Any, processor: Any, grid: tuple[int, int], form: Form) -> None:
        super().__init__()
        vision = network.model.visual
        self.pixels = Pixels(processor, vision, grid, None)
        self.embed = _patch_embedding(form, vision)
        self.blocks = nn.ModuleList(Qwen3Block(block, form) for block in vision.blocks)
        self.merger = Qwen3Merger(vision.merger, form)
        self.deepstack = nn.ModuleList(Qwen3Merger(merger, form) for merger in vision.deepstack_merger_list)
        self.taps = list(vision.deepstack_visual_indexes)
        device = vision.pos_embed.weight.device
        frames = torch.tensor([[1, *grid]], device=device)
        merge = vision.config.spatial_merge_size
        indices, shares = get_vision_interpolation_indices_and_weights(
            frames,
            num_grid_per_side=vision.num_grid_per_side,
            mode=vision.interpolation_mode,
            align_corners=vision.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        placed = (vision.pos_embed(indices) * shares[:, :, None]).sum(1).to(vision.pos_embed.weight.dtype)
        cos, sin = vision.rotary_pos_emb(placed, get_vision_position_ids(frames, merge))
        self.rotation = Rotation(cos, sin)
        self.positions: torch.Tensor
        self.register_buffer("positions", placed.detach().clone())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """``images`` (B, H, W, 3) uint8 to embeddings (B, n, text width) and features of that shape."""
        batch = len(images)
        hidden = self.embed(self.pixels(images)).view(batch, *self.positions.shape) + self.positions
        hidden = hidden.flatten(0, 1)
        features = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, batch, self.rotation, None)
            if index in self.taps:
                features.append(_per_image(self.deepstack[self.taps.index(index)](hidden), batch))
        return _per_image(self.merger(hidden), batch), features


class Qwen2Tower(nn.Module):
    """Qwen2.5-VL's tower: patches stand window by window, and most blocks attend within windows."""

    def __init__(self, network: Any, processor: Any, grid: tuple[int, int], form: Form) -> None:
        super().__init__()
        vision = network.model.visual
        merge, device = vision.config.spatial_merge_size, vision.patch_embed.proj.weight.device
        frames = torch.tensor([[1, *grid]], device=device)
        order, ends = get_vision_window_index(
            frames, spatial_merge_size=merge, window_size=vision.window_size, patch_size=vision.patch_size
        )
        order = order.to(device)
        self.pixels = Pixels(processor, vision, grid, order)
        self.embed = _patch_embedding(form, vision)
        self.blocks = nn.ModuleList(Qwen2Block(block, form) for block in vision.blocks)
        self.merger = Qwen2Merger(vision.merger, form)
        self.whole = frozenset(vision.fullatt_block_indexes)
        cos, sin = vision.rotary_pos_emb(
            torch.zeros(1, device=device), get_vision_position_ids(frames, merge)
        )
        self.rotation = Rotation(*(_in_order(table, order, merge) for table in (cos, sin)))
        self.mask: torch.Tensor
        self.back: torch.Tensor
        self.register_buffer("mask", _window_mask(ends.to(device), self.pixels.dtype))
        self.register_buffer("back", torch.argsort(order))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As Qwen3Tower's, without features."""
        batch = len(images)
        hidden = self.embed(self.pixels(images))
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, batch, self.rotation, None if index in self.whole else self.mask)
        return _per_image(self.merger(hidden), batch)[:, self.back], []


TOWERS: dict[str, type[Qwen3Tower] | type[Qwen2Tower]] = {"qwen3_vl": Qwen3Tower, "qwen2_5_vl": Qwen2Tower}


def vision_tower(
    family: str, network: Any, processor: Any, grid: tuple[int, int], form: Form
) -> Qwen3Tower | Qwen2Tower:
    """The tower of a family. Raises CheckpointError for one that is not known here."""
    if family not in TOWERS:
        raise CheckpointError(f"there is no static pass for {family}; known are {', '.join(TOWERS)}")
    return TOWERS[family](network, processor, grid, form)


def _linear(form: Form, source: Any) -> Linear:
    return form(source.weight.detach(), None if source.bias is None else source.bias.detach())


def _gated(form: Form, mlp: Any) -> tuple[Linear, Linear]:
    """Gate and up as one layer, and down, with the inner width filled up to a multiple of 64: 3,420 rows of
    two bytes are not aligned for matrix kernels."""
    inner = mlp.gate_proj.weight.shape[0]
    more = -inner % MULTIPLE
    weights = [F.pad(p.weight.detach(), (0, 0, 0, more)) for p in (mlp.gate_proj, mlp.up_proj)]
    biases = [F.pad(p.bias.detach(), (0, more)) for p in (mlp.gate_proj, mlp.up_proj) if p.bias is not None]
    down = mlp.down_proj
    return (
        form(torch.cat(weights), torch.cat(biases) if biases else None),
        form(
            F.pad(down.weight.detach(), (0, more)).contiguous(),
            None if down.bias is None else down.bias.detach(),
        ),
    )


def _patch_embedding(form: Form, vision: Any) -> Linear:
    """The patch embedding for still images in (row, column, channel) order: both frames of a temporal patch
    show the same, so their weights are summed."""
    source = vision.patch_embed.proj
    summed = source.weight.detach().float().sum(dim=2)  # (width, 3, patch, patch)
    rows = summed.permute(0, 2, 3, 1).flatten(1).to(source.weight.dtype)
    return form(rows, None if source.bias is None else source.bias.detach())


def _in_order(table: torch.Tensor, order: torch.Tensor, merge: int) -> torch.Tensor:
    return table.view(-1, merge * merge, table.shape[-1])[order].flatten(0, 1)


def _window_mask(ends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, N, N) for windows that end at ``ends`` (the first entry is 0). Its rows are stored in steps of
    a multiple of 16, as attention kernels read them."""
    count = int(ends[-1])
    window = torch.bucketize(torch.arange(count, device=ends.device), ends[1:].long(), right=True)
    mask = torch.full((count, count + -count % 16), HIDDEN, dtype=dtype, device=ends.device)
    mask[:, :count].masked_fill_(window[:, None] == window[None], 0.0)
    return mask[None, None, :, :count]


def _per_image(tokens: torch.Tensor, batch: int) -> torch.Tensor:
    return tokens.view(batch, -1, tokens.shape[-1])
