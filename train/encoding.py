"""From wafer images and questions to the inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from train.loading import Checkpoint
from wafervlm.errors import ImageError, TaskError, UsageError
from wafervlm.render import RgbImage
from wafervlm.task import Task


def encode(
    checkpoint: Checkpoint,
    task: Task,
    images: Sequence[RgbImage],
    labels: Sequence[str] | None = None,
    shown: Sequence[bool] | None = None,
) -> dict[str, torch.Tensor]:
    """Inputs of the model for one or more ``images``, each (H, W, 3) uint8 RGB as ``task`` renders them.

    Returns input_ids, attention_mask and mm_token_type_ids, each (B, T) int64 and padded on the right,
    pixel_values (B * patches, 3 * 2 * patch * patch) float32 and image_grid_thw (B, 3) int64. Without
    ``labels`` the text ends where the answer begins; with them the whole answer follows, with the token
    that ends the turn. ``shown`` says of the labels of a multi-label task whether it is yes; None: it is.
    Raises ImageError for another size than the task's, TaskError where the processor would resample images
    of the task.
    """
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"{len(images)} images came with {len(labels)} labels; give one label per image")
    processor = checkpoint.processor
    answers: Sequence[str | None] = [None] * len(images) if labels is None else labels
    verdicts = [True] * len(images) if shown is None else shown
    texts = [prompt_text(processor, task, *answer) for answer in zip(answers, verdicts, strict=True)]
    check_image_size(processor, task.render.height, task.render.width)
    return encode_texts(checkpoint, texts, [check_image(image, task) for image in images])


def encode_texts(
    checkpoint: Checkpoint, texts: Sequence[str], images: Sequence[RgbImage]
) -> dict[str, torch.Tensor]:
    """Inputs of the model for whole conversations as text, one image in each; tensors as ``encode`` says."""
    pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
    inputs = checkpoint.processor(
        text=list(texts), images=pictures, return_tensors="pt", padding=True, padding_side="right"
    )
    return {key: value.to(checkpoint.device) for key, value in inputs.items()}


def prompt_text(processor: Any, task: Task, label: str | None = None, shown: bool = True) -> str:
    """The conversation as text, up to where the answer begins, or with the answer and the end of its turn.

    Raises TaskError where the chat template does not write the answer right after the prompt.
    """
    tokenizer = processor.tokenizer
    text: str = tokenizer.apply_chat_template(task.messages(), tokenize=False, add_generation_prompt=True)
    if label is None:
        return text
    whole: str = tokenizer.apply_chat_template(task.messages(label, shown), tokenize=False)
    if not whole.startswith(text + task.answer(label, shown)):
        raise TaskError(
            "the chat template does not write the answer right after the prompt; use another template"
        )
    # After the mark that ends the turn a template writes white space, which no model is asked for.
    return whole.rstrip()


def check_image_size(processor: Any, height: int, width: int) -> None:
    """Raise TaskError where an image of this size would be resampled, which blurs die edges."""
    images = processor.image_processor
    step = images.patch_size * images.merge_size
    if height % step or width % step:
        raise TaskError(
            f"images of {height}x{width} pixels would be resampled: this checkpoint needs multiples of {step}"
            f"; set the task's render size, for example to {_near(height, step)}x{_near(width, step)}"
        )
    least, most = images.size["shortest_edge"], images.size["longest_edge"]
    if not least <= height * width <= most or max(height, width) > 200 * min(height, width):
        raise TaskError(
            f"images of {height}x{width} pixels would be resampled: this checkpoint's image processor takes "
            f"{least} to {most} pixels and sides of at most 200 to 1; set the task's render size"
        )


def check_image(image: RgbImage, task: Task) -> RgbImage:
    """Return ``image``; raise ImageError where it is not (H, W, 3) uint8 of the task's render size."""
    wanted = (task.render.height, task.render.width, 3)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != wanted:
        what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(
            f"an image of task {task.name!r} must be a uint8 array of shape {wanted}, not {what}"
        )
    return image


def _near(pixels: int, step: int) -> int:
    return max(1, round(pixels / step)) * step
