"""Images to the patches that the vision tower reads, for a whole batch at once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray


def patchify(
    images: NDArray[np.uint8], patch: int, merge: int, mean: float = 0.5, std: float = 0.5
) -> torch.Tensor:
    """``images`` (B, H, W, 3) uint8 to pixel values (B * patches, 3 * 2 * patch * patch) float32.

    Equal to transformers' image processor of the family, without resampling: values scaled to 0..1, then
    ``(x - mean) / std``; patches in blocks of ``merge`` x ``merge``; each patch channel by channel, with
    the image standing for both frames of a temporal patch.
    """
    count, height, width, _ = images.shape
    rows, columns = height // patch, width // patch
    pixels = (torch.from_numpy(images).float() / 255.0 - mean) / std
    blocks = pixels.view(count, rows // merge, merge, patch, columns // merge, merge, patch, 3)
    ordered = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(count * rows * columns, 3, 1, patch, patch)
    return ordered.expand(-1, -1, 2, -1, -1).reshape(count * rows * columns, -1)
