"""Teaching the vision tower alone: heads that predict ``train.nano.targets`` from what the tower hands over.

The heads serve the training only; no checkpoint keeps them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from train.nano.choices import CHOICES
from train.nano.config import Shape
from train.nano.targets import PATCH_VALUES, patch_targets, wafer_targets
from wafervlm.wafermap import DieGrid

MERGE = 2


class Sight(nn.Module):
    """Heads over the merged tokens and the deep features of a vision tower of ``shape``.

    ``forward`` takes the ``features`` of B images, with ``local`` (B, tokens, 4 *
    len(PATCH_VALUES)) and ``whole`` (B, M) as ``targets`` returns them, and returns the sum of their mean
    smooth L1 losses, each value standardised by its mean and deviation over ``sample``. With ``chosen``
    (B, len(CHOICES)) int64, the mean cross-entropy of the choices in nats is added, ``choices`` times: one
    linear layer reads them off the mean token, so that a text model's attention can.
    """

    def __init__(self, shape: Shape, sample: list[DieGrid], choices: float = 0.0) -> None:
        super().__init__()
        self.shape, self.weight = shape, choices
        width = shape.text_width * (1 + len(shape.deepstack))
        local, whole = targets(sample, shape)
        self.scales: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
            name: (values.mean(dim=0), values.std(dim=0) + 1e-3)
            for name, values in (("local", local.flatten(0, 1)), ("whole", whole))
        }
        self.local = nn.Linear(width, local.shape[-1])
        self.whole = nn.Sequential(
            nn.Linear(2 * width, shape.text_width), nn.GELU(), nn.Linear(shape.text_width, whole.shape[-1])
        )
        self.sizes = [count for count, _ in CHOICES.values()]
        if choices:
            self.chosen = nn.Linear(width, sum(self.sizes))

    def forward(
        self, seen: torch.Tensor, local: torch.Tensor, whole: torch.Tensor, chosen: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss, a scalar."""
        tokens = seen.view(len(whole), -1, seen.shape[-1])
        pooled = torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=-1)
        loss = self._loss("local", self.local(tokens), local) + self._loss("whole", self.whole(pooled), whole)
        if chosen is None:
            return loss
        found = self.chosen(tokens.mean(dim=1)).float().split(self.sizes, dim=-1)
        each = [F.cross_entropy(scores, chosen[:, place]) for place, scores in enumerate(found)]
        return loss + self.weight * torch.stack(each).mean()

    def _loss(self, name: str, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        mean, deviation = (values.to(wanted.device) for values in self.scales[name])
        # Shares that are rarely other than 0 have long tails once standardised.
        return F.smooth_l1_loss(found.float(), ((wanted - mean) / deviation).clamp(-8, 8))


def features(seen: Any) -> torch.Tensor:
    """What a vision tower hands over, side by side: (merged tokens of all images, width of the text model *
    (1 + deep features)), of the output ``seen`` of the tower."""
    return torch.cat([seen.pooler_output, *seen.deepstack_features], dim=-1)


def targets(grids: list[DieGrid], shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of B die grids: by merged token (B, tokens, 4 * len(PATCH_VALUES)) and of the whole (B, M)."""
    local = np.stack([patch_targets(grid, shape.image, shape.patch) for grid in grids])
    whole = np.stack([wafer_targets(grid) for grid in grids])
    return torch.from_numpy(_by_token(local)), torch.from_numpy(whole)


def _by_token(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, side, side, K) to (B, tokens, 4 K): the four patches of each merged token side by side."""
    count, side = values.shape[:2]
    blocks = values.reshape(count, side // MERGE, MERGE, side // MERGE, MERGE, len(PATCH_VALUES))
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 2, 4, 5).reshape(count, (side // MERGE) ** 2, -1))
