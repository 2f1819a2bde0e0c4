"""Chats for the policy: the row's prompt, or its bare question, with the wafer's image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from train.encoding import check_image_size
from train.rl.rows import PolicyRow
from wafervlm.render import render
from wafervlm.task import Task

Chat = list[dict[str, Any]]


class Prompts:
    """Makes chats of rows, as ``task`` renders wafers. With ``tags`` they are the rows' own; without, the
    task's with the row's question, which is what an SFT on words has asked. Raises TaskError where
    ``processor`` would resample the images."""

    def __init__(self, processor: Any, task: Task, *, tags: bool) -> None:
        check_image_size(processor, task.render.height, task.render.width)
        self._processor, self._task, self._tags = processor, task, tags
        # Answers are drawn from the right end of the prompt.
        processor.tokenizer.padding_side = "left"

    def chat(self, row: PolicyRow) -> Chat:
        """The turns of ``row``, its image in the place of the mark."""
        turns = row.row.prompt if self._tags else replace(self._task, prompt=row.question).messages()
        image = Image.fromarray(render(row.wafer, self._task.render))
        return [
            {**turn, "content": [_filled(part, image) for part in _parts(turn["content"])]} for turn in turns
        ]

    def encode(self, rows: Sequence[PolicyRow]) -> dict[str, torch.Tensor]:
        """Inputs of the model up to where the answers begin, padded on the left."""
        inputs = self._processor.apply_chat_template(
            [self.chat(row) for row in rows],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        return dict(inputs)

    def length(self, row: PolicyRow) -> int:
        """Tokens of the prompt, image included."""
        return int(self.encode([row])["input_ids"].shape[1])


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts of a turn's content, which may be plain text."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _filled(part: dict[str, Any], image: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": image} if part.get("type") == "image" else part
