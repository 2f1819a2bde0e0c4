"""Images to the patches that the vision tower reads, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Channels = float | Sequence[float]


def patchify(
    images: NDArray[np.uint8], patch: int, merge: int, mean: Channels = 0.5, std: Channels = 0.5
) -> torch.Tensor:
    """``images`` (B, H, W, 3) uint8 to pixel values (B * patches, 3 * 2 * patch * patch) float32.

    Equal to transformers' image processor of the family, without resampling: values scaled to 0..1, then
    ``(x - mean) / std``, of all channels or of each; patches in blocks of ``merge`` x ``merge``; each patch
    channel by channel, with the image standing for both frames of a temporal patch.
    """
    count, height, width, _ = images.shape
    rows, columns = height // patch, width // patch
    pixels = torch.from_numpy(images).float() / 255.0
    blocks = pixels.view(count, rows // merge, merge, patch, columns // merge, merge, patch, 3)
    ordered = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(count * rows * columns, 3, 1, patch, patch)
    ordered = (ordered - _by_channel(mean)) / _by_channel(std)
    return ordered.expand(-1, -1, 2, -1, -1).reshape(count * rows * columns, -1)


def _by_channel(values: Channels) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)
