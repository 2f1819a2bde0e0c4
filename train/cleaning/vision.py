"""What a checkpoint's vision tower sees in wafer maps, pooled to one vector for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.cleaning.partial import Partial
from train.encoding import check_image_size
from train.loading import Checkpoint
from train.patches import patchify
from train.progress import Progress
from wafervlm.errors import CheckpointError
from wafervlm.render import RenderSpec, render
from wafervlm.wafermap import DieGrid

USUAL_SIDE = 256


def native_spec(checkpoint: Checkpoint, spec: RenderSpec | None = None) -> RenderSpec:
    """The render size to look at: that of ``spec`` where the checkpoint takes it, else a square near 256
    pixels, as large as its image processor allows, in multiples of its merged patch."""
    images = checkpoint.processor.image_processor
    if spec is not None:
        try:
            check_image_size(checkpoint.processor, spec.height, spec.width)
        except ValueError:
            pass
        else:
            return spec
    step = images.patch_size * images.merge_size
    least, most = (math.sqrt(images.size[edge]) for edge in ("shortest_edge", "longest_edge"))
    side = min(max(USUAL_SIDE, least), most)
    side = max(step, int(side // step) * step)
    check_image_size(checkpoint.processor, side, side)
    return RenderSpec(side, side) if spec is None else RenderSpec(side, side, spec.palette)


def vision_features(
    checkpoint: Checkpoint,
    grids: Sequence[DieGrid],
    spec: RenderSpec,
    batch: int = 32,
    partial: Partial | None = None,
) -> NDArray[np.float32]:
    """The merged tokens of the vision tower for die grids, mean and maximum over tokens: (N, 2 * width).
    Those that ``partial`` holds are not looked at again, and the others are added to it.

    Raises CheckpointError where the tower gives values that are not finite.
    """
    tower = checkpoint.network.model.visual
    images = checkpoint.processor.image_processor
    rows, columns = spec.height // images.patch_size, spec.width // images.patch_size
    tokens = rows * columns // images.merge_size**2
    pooled: list[NDArray[np.float32]] = []
    if partial is not None:
        pooled.append(
            partial.begin(2 * checkpoint.network.config.vision_config.out_hidden_size)[: len(grids)]
        )
    done = sum(map(len, pooled))
    with Progress("look at maps", len(grids), done=done) as progress, torch.inference_mode():
        for start in range(done, len(grids), batch):
            some = grids[start : start + batch]
            pixels = patchify(
                np.stack([render(grid, spec) for grid in some]),
                images.patch_size,
                images.merge_size,
                images.image_mean,
                images.image_std,
            )
            places = torch.tensor([[1, rows, columns]] * len(some), device=checkpoint.device)
            seen: Any = tower(pixels.to(checkpoint.device, tower.dtype), grid_thw=places).pooler_output
            seen = (torch.cat(seen) if isinstance(seen, (tuple, list)) else seen).float()
            seen = seen.reshape(len(some), tokens, -1)
            both = torch.cat([seen.mean(dim=1), seen.amax(dim=1)], dim=-1)
            pooled.append(both.cpu().numpy())
            if partial is not None:
                partial.add(pooled[-1])
            progress.advance(len(some))
    features = np.concatenate(pooled)
    if not np.isfinite(features).all():
        raise CheckpointError(
            f"the vision tower of {checkpoint.path} gives values that are not finite; load it in float32"
        )
    return features
