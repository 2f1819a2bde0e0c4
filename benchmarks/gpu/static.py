"""The static pass: one image size, one prompt, all labels in one forward, as a torch module.

It is what export/ writes as a graph, with the same constants folded, and can be recorded as one CUDA graph:
nothing in it waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.head import LabelScores
from benchmarks.gpu.linear import Dense, Form, Linear
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.text import TextCore, head_weight
from benchmarks.gpu.vision import vision_tower
from train.loading import Checkpoint
from wafervlm.task import Task


@dataclass(frozen=True, slots=True)
class Matrix:
    """``count`` products of (M, K) activations with (N, K) weights in one part of a pass, "vision", "text" or
    "head"."""

    part: str
    m: int
    k: int
    n: int
    count: int


class StaticPass(nn.Module):
    """Images (B, H, W, 3) uint8 to label log-probabilities (B, L) float32."""

    def __init__(
        self, checkpoint: Checkpoint, task: Task, *, text: Form = Dense, vision: Form = Dense
    ) -> None:
        super().__init__()
        network = checkpoint.network
        plan = Plan.of(checkpoint, task)
        self.labels = len(task.labels)
        patch = network.config.vision_config.patch_size
        grid = task.render.height // patch, task.render.width // patch
        with torch.no_grad():
            self.vision = vision_tower(checkpoint.family.name, network, checkpoint.processor, grid, vision)
            self.text = TextCore(network, plan, text)
            self.scores = LabelScores(plan.tree, checkpoint.device)
            self.head = head_weight(network, self.scores.tokens)
        self.norm: torch.Tensor
        self.register_buffer("norm", network.model.language_model.norm.weight.detach().clone())
        self.epsilon = network.config.text_config.rms_norm_eps
        self.computed_tokens, self.fixed_tokens = plan.length, len(plan.before)
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings, features = self.vision(images)
        hidden = self.text(embeddings, features)
        hidden = nn.functional.rms_norm(hidden, hidden.shape[-1:], self.norm, self.epsilon)
        logits = self.head(hidden.float())
        scores: torch.Tensor = self.scores(logits.view(len(images), -1, logits.shape[-1]))
        return scores

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block of the tower and each decoder layer: all of a kind share one compilation."""
        for block in (*self.vision.blocks, *self.text.layers[:-1]):
            block.compile(backend=backend, dynamic=False, fullgraph=True)

    @torch.no_grad()
    def matrices(self, images: torch.Tensor) -> list[Matrix]:
        """The products of one pass over ``images``, as they come."""
        found: dict[tuple[str, int, int, int], int] = {}
        parts = {id(m): name.split(".", 1)[0] for name, m in self.named_modules() if isinstance(m, Linear)}

        def note(layer: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
            key = parts[id(layer)], inputs[0].shape[0], layer.inputs, layer.outputs
            found[key] = found.get(key, 0) + 1

        hooks = [m.register_forward_hook(note) for m in self.modules() if isinstance(m, Linear)]
        try:
            self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [Matrix(*key, count) for key, count in found.items()]
