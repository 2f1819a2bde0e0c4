"""The text core of the static pass: image tokens, the text after them and the label tree, as torch modules.

The computation is that of export/text.py: keys and values of the text before the image are constants, linear
layers that read one input are one, and of the last layer only the rows at which labels part are computed
beyond keys and values. Both families share it; where a checkpoint has no norms of heads, or has biases, the
layer has not or has them too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.gpu.linear import Dense, Form, Linear
from benchmarks.gpu.plan import HIDDEN, Plan


class Rotation(nn.Module):
    """Rotary position embedding of T tokens: ``cos`` and ``sin`` (T, 1, D)."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        super().__init__()
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.register_buffer("cos", cos[:, None].contiguous())
        self.register_buffer("sin", sin[:, None].contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (B, T, heads, D)."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return (x * self.cos + turned * self.sin).to(x.dtype)


class Layer(nn.Module):
    """A decoder layer made from transformers' ``source``. Hidden states are (B * T, width).

    ``last`` is the layer of which only some rows are wanted: there queries have a product of their own.
    """

    def __init__(self, source: Any, config: Any, form: Form, last: bool = False) -> None:
        super().__init__()
        attention, mlp = source.self_attn, source.mlp
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.epsilon = config.rms_norm_eps
        if last:
            self.q, self.kv = (
                _joined(form, attention.q_proj),
                _joined(form, attention.k_proj, attention.v_proj),
            )
        else:
            self.qkv = _joined(form, attention.q_proj, attention.k_proj, attention.v_proj)
        self.o = _joined(form, attention.o_proj)
        self.gate_up = _joined(form, mlp.gate_proj, mlp.up_proj)
        self.down = _joined(form, mlp.down_proj)
        self.input_norm: torch.Tensor
        self.post_norm: torch.Tensor
        self.head_norm: torch.Tensor | None
        self.register_buffer("input_norm", source.input_layernorm.weight.detach().clone())
        self.register_buffer("post_norm", source.post_attention_layernorm.weight.detach().clone())
        self.register_buffer("head_norm", _head_norm(attention, self.heads, self.kv_heads))

    def forward(
        self,
        hidden: torch.Tensor,
        batch: int,
        rotation: Rotation,
        mask: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """The layer on all T tokens, which see the fixed ``keys`` and ``values`` (1, kv heads, P, D) too."""
        qkv = self.qkv(self._normed(hidden)).view(batch, -1, self.heads + 2 * self.kv_heads, self.head_dim)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q, k = rotation(self._head_normed(qk, 0)).split([self.heads, self.kv_heads], dim=2)
        k, v = with_fixed(keys, k.transpose(1, 2)), with_fixed(values, v.transpose(1, 2))
        return self.finish(hidden, self.attend(q, k, v, mask))

    def forward_rows(
        self,
        hidden: torch.Tensor,
        batch: int,
        rows: torch.Tensor,
        rotations: tuple[Rotation, Rotation],
        mask: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """The last layer at ``rows`` (R,) of the tokens: (B * R, width). ``rotations`` are of all tokens and
        of the rows."""
        x = self._normed(hidden)
        k, v = self.keys_values(x, batch, rotations[0])
        picked = x.view(batch, -1, x.shape[-1])[:, rows].flatten(0, 1)
        q = self.q(picked).view(batch, -1, self.heads, self.head_dim)
        q = rotations[1](self._head_normed(q, 0))
        attended = self.attend(q, with_fixed(keys, k), with_fixed(values, v), mask)
        return self.finish(hidden.view(batch, -1, hidden.shape[-1])[:, rows].flatten(0, 1), attended)

    def keys_values(
        self, x: torch.Tensor, batch: int, rotation: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Turned keys and values, (B, kv heads, T, D), of the last layer's normed input."""
        kv = self.kv(x).view(batch, -1, 2 * self.kv_heads, self.head_dim)
        k, v = kv.split([self.kv_heads, self.kv_heads], dim=2)
        return rotation(self._head_normed(k, self.heads)).transpose(1, 2), v.transpose(1, 2)

    def fix(
        self, hidden: torch.Tensor, rotation: Rotation, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values of the text before the image, and what it is after this layer (of the last, as it
        was: nothing reads it)."""
        if hasattr(self, "kv"):
            return *self.keys_values(self._normed(hidden), 1, rotation), hidden
        qkv = self.qkv(self._normed(hidden)).view(1, -1, self.heads + 2 * self.kv_heads, self.head_dim)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        q, k = rotation(self._head_normed(qk, 0)).split([self.heads, self.kv_heads], dim=2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        return k, v, self.finish(hidden, self.attend(q, k, v, mask))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B * T, heads * D). The query heads that share keys stand one after the other as rows, so that
        keys are not repeated; ``mask`` has their rows."""
        batch, length = q.shape[:2]
        shared = self.heads // self.kv_heads
        grouped = q.reshape(batch, length, self.kv_heads, shared, self.head_dim)
        rows = grouped.permute(0, 2, 3, 1, 4).reshape(batch, self.kv_heads, shared * length, self.head_dim)
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=mask)
        back = out.view(batch, self.kv_heads, shared, length, self.head_dim).permute(0, 3, 1, 2, 4)
        return back.reshape(batch * length, self.heads * self.head_dim)

    def finish(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """Output projection and MLP, each added to ``hidden``."""
        hidden = hidden + self.o(attended)
        x = F.rms_norm(hidden, hidden.shape[-1:], self.post_norm, self.epsilon)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: torch.Tensor = hidden + self.down(F.silu(gate) * up)
        return out

    def _normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], self.input_norm, self.epsilon)

    def _head_normed(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """``x`` (B, T, heads, D), whose heads are those from ``first`` on of queries and keys together."""
        if self.head_norm is None:
            return x
        scale = self.head_norm[first : first + x.shape[2]]
        return F.rms_norm(x, (self.head_dim,), None, self.epsilon) * scale


def with_fixed(fixed: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """``fixed`` (1, kv heads, P, D) before ``states`` (B, kv heads, T, D)."""
    return torch.cat([fixed.expand(len(states), -1, -1, -1), states], dim=2)


class TextCore(nn.Module):
    """All decoder layers for one plan: image embeddings to hidden states at the rows where labels part."""

    def __init__(self, network: Any, plan: Plan, form: Form) -> None:
        super().__init__()
        text, config = network.model.language_model, network.config.text_config
        dtype, device = text.embed_tokens.weight.dtype, text.embed_tokens.weight.device
        self.image_tokens = plan.image_tokens
        depth = len(text.layers)
        self.layers = nn.ModuleList(
            Layer(layer, config, form, last=index == depth - 1) for index, layer in enumerate(text.layers)
        )
        shared = config.num_attention_heads // config.num_key_value_heads
        cos, sin = text.rotary_emb(torch.zeros(1, device=device), plan.positions)
        cos, sin, before = cos[0].to(dtype), sin[0].to(dtype), len(plan.before)
        self.rotation = Rotation(cos[before:], sin[before:])
        self.rotation_of_rows = Rotation(cos[before:][plan.rows], sin[before:][plan.rows])
        self.after: torch.Tensor
        self.mask: torch.Tensor
        self.mask_of_rows: torch.Tensor
        self.rows: torch.Tensor
        self.register_buffer("after", text.embed_tokens.weight[plan.after].detach()[None].clone())
        self.register_buffer("mask", plan.mask(None, shared, dtype))
        self.register_buffer("mask_of_rows", plan.mask(plan.rows, shared, dtype))
        self.register_buffer("rows", plan.rows.clone())
        embedded = text.embed_tokens.weight[plan.before].detach()
        self._fix(embedded, Rotation(cos[:before], sin[:before]), plan, shared)

    def _fix(self, hidden: torch.Tensor, rotation: Rotation, plan: Plan, shared: int) -> None:
        """Keys and values of the text before the image, through the layers as they are computed here."""
        length = len(hidden)
        causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        mask = torch.zeros_like(causal, dtype=hidden.dtype).masked_fill(~causal, HIDDEN)
        mask = mask.repeat(shared, 1)[None, None]
        layer: Any
        for index, layer in enumerate(self.layers):
            if length:
                keys, values, hidden = layer.fix(hidden, rotation, mask)
            else:
                keys = values = hidden.new_zeros(1, layer.kv_heads, 0, layer.head_dim)
            for name, states in (("keys", keys), ("values", values)):
                self.register_buffer(f"{name}_{index}", F.pad(states, (0, 0, plan.padding, 0)))

    def _fixed(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.get_buffer(f"keys_{index}"), self.get_buffer(f"values_{index}")

    def forward(self, image: torch.Tensor, deepstack: list[torch.Tensor]) -> torch.Tensor:
        """``image`` (B, n, width), and features of that shape, which are added to the image tokens after the
        first layers; to (B * R, width)."""
        batch, width = image.shape[0], image.shape[-1]
        hidden = torch.cat([image, self.after.expand(batch, -1, -1)], dim=1).view(-1, width)
        last = len(self.layers) - 1
        for index in range(last):
            hidden = self.layers[index](hidden, batch, self.rotation, self.mask, *self._fixed(index))
            if index < len(deepstack):
                # In place: the layer's sum is nobody else's.
                hidden.view(batch, -1, width)[:, : self.image_tokens].add_(deepstack[index])
        rotations = (self.rotation, self.rotation_of_rows)
        layer: Any = self.layers[last]
        rows: torch.Tensor = layer.forward_rows(
            hidden, batch, self.rows, rotations, self.mask_of_rows, *self._fixed(last)
        )
        return rows


def _joined(form: Form, *sources: Any) -> Linear:
    """One layer whose outputs are those of ``sources`` one after the other."""
    weight = torch.cat([source.weight.detach() for source in sources])
    biases = [source.bias.detach() for source in sources if source.bias is not None]
    return form(weight, torch.cat(biases) if biases else None)


def _head_norm(attention: Any, heads: int, kv_heads: int) -> torch.Tensor | None:
    """(heads + kv heads, D): the scales of queries' and keys' norms; None where the family has none."""
    if not hasattr(attention, "q_norm"):
        return None
    q, k = attention.q_norm.weight.detach(), attention.k_norm.weight.detach()
    return torch.cat([q.expand(heads, -1), k.expand(kv_heads, -1)]).clone()


def head_weight(network: Any, tokens: torch.Tensor) -> Dense:
    """The output head's rows of ``tokens`` in float32: it is small, and logits rounded to bfloat16 would be
    the largest error of the pass."""
    return Dense(network.lm_head.weight[tokens].detach().float())
