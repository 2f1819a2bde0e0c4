"""Full precision in transformers: generate, one forward, and one forward that a CUDA graph can record."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from benchmarks.gpu.head import LabelScores
from benchmarks.gpu.subject import Subject
from train.encoding import encode
from train.scorer import TreePass


class Generate:
    """transformers' ``generate``, greedy, with its key-value cache, to exactly ``tokens`` new tokens."""

    def __init__(self, subject: Subject, batch: int, tokens: int) -> None:
        self._model, self._tokens = subject.checkpoint.model, tokens
        inputs = encode(subject.checkpoint, subject.task, subject.batch(batch))
        self._constant = {key: value for key, value in inputs.items() if key != "pixel_values"}
        self._prompt = inputs["input_ids"].shape[1]
        self._pad = subject.checkpoint.tokenizer.pad_token_id

    @torch.no_grad()
    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        """The ids (B, tokens) that were written."""
        written: torch.Tensor = self._model.generate(
            **self._constant,
            pixel_values=patches,
            do_sample=False,
            max_new_tokens=self._tokens,
            min_new_tokens=self._tokens,
            pad_token_id=self._pad,
        )
        return written[:, self._prompt :]


def answer_length(subject: Subject) -> int:
    """Tokens of the task's answers with the end of the turn: of the longest where the answers are to be read,
    else on average, rounded up."""
    tokenizer, task = subject.checkpoint.tokenizer, subject.task
    answers = tokenizer([task.answer(label) for label in task.labels], add_special_tokens=False)["input_ids"]
    lengths = [len(answer) + 1 for answer in answers]
    return max(lengths) if subject.trained else -(-sum(lengths) // len(lengths))


def labels_written(subject: Subject, written: torch.Tensor) -> list[int]:
    """The place of the label that each row of ids begins with the answer of, -1 where there is none."""
    texts = subject.checkpoint.tokenizer.batch_decode(written, skip_special_tokens=False)
    answers = [subject.task.answer(label).strip() for label in subject.task.labels]
    return [
        next((i for i, answer in enumerate(answers) if text.strip().startswith(answer)), -1) for text in texts
    ]


class OneForward(nn.Module):
    """transformers' own forward over prompt and label tree: all labels in one pass."""

    def __init__(self, subject: Subject, batch: int) -> None:
        super().__init__()
        checkpoint = subject.checkpoint
        plan = TreePass.of(checkpoint, subject.task)
        inputs = encode(checkpoint, subject.task, subject.batch(batch))
        added = plan.added.expand(batch, -1)
        self.model = checkpoint.network
        self.scores = LabelScores(plan.tree, checkpoint.device)
        parting = [i for i, node in enumerate(plan.tree.nodes) if len(node.branches) > 1]
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(added)], dim=1)
        self.constants: dict[str, torch.Tensor] = {
            "input_ids": torch.cat([inputs["input_ids"], added], dim=1),
            "mm_token_type_ids": types,
            "attention_mask": plan.mask.expand(batch, -1, -1, -1),
            "position_ids": plan.positions.expand(-1, batch, -1),
            "image_grid_thw": inputs["image_grid_thw"],
            "logits_to_keep": plan.rows[parting],
        }

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches (B * N, C) as the image processor gives them to label log-probabilities (B, L)."""
        logits = self.model(pixel_values=patches, use_cache=False, **self.constants).logits
        scores: torch.Tensor = self.scores(logits[..., self.scores.tokens])
        return scores


class RecordedForward(OneForward):
    """The same modules called one after the other, with everything that follows from the image's size found
    beforehand: transformers' forward asks the device for it on every call, which a CUDA graph cannot."""

    def __init__(self, subject: Subject, batch: int) -> None:
        super().__init__(subject, batch)
        ids, network = self.constants["input_ids"], self.model.model
        image = (ids[0] == self.model.config.image_token_id).nonzero()[:, 0]
        self.first, self.last = int(image[0]), int(image[-1]) + 1
        self.grid = _grid_constants(network.visual, self.constants["image_grid_thw"])
        embedded = network.language_model.embed_tokens(ids)
        self.before: torch.Tensor
        self.after: torch.Tensor
        self.register_buffer("before", embedded[:, : self.first].detach().clone())
        self.register_buffer("after", embedded[:, self.last :].detach().clone())

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        network, constants = self.model.model, self.constants
        batch = len(self.before)
        seen = network.visual(patches, grid_thw=constants["image_grid_thw"], return_dict=True, **self.grid)
        image = seen.pooler_output.view(batch, -1, self.before.shape[-1])
        deepstack = getattr(seen, "deepstack_features", None)
        extra = {} if deepstack is None else {"deepstack_visual_embeds": deepstack}
        with _static_deepstack(network.language_model, self.first, self.last):
            hidden = network.language_model(
                inputs_embeds=torch.cat([self.before, image, self.after], dim=1),
                attention_mask=constants["attention_mask"],
                position_ids=constants["position_ids"],
                use_cache=False,
                **extra,
            ).last_hidden_state
        logits = self.model.lm_head(hidden[:, constants["logits_to_keep"]])
        scores: torch.Tensor = self.scores(logits[..., self.scores.tokens])
        return scores


class _static_deepstack:  # noqa: N801
    """Inside the block DeepStack features are added to the tokens ``first`` to ``last``, by their place
    rather than by a mask."""

    def __init__(self, text: Any, first: int, last: int) -> None:
        self._text, self._first, self._last = text, first, last

    def __enter__(self) -> None:
        def add(hidden: torch.Tensor, _: object, features: torch.Tensor) -> torch.Tensor:
            hidden = hidden.clone()
            place = hidden[:, self._first : self._last]
            place.add_(features.view(place.shape))
            return hidden

        if hasattr(self._text, "_deepstack_process"):
            self._text._deepstack_process = add

    def __exit__(self, *_: object) -> None:
        self._text.__dict__.pop("_deepstack_process", None)


def _grid_constants(vision: Any, grids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the tower works out from the images' grids, under the names by which it takes it from a caller.
    Sequence lengths stay on the host, where the tower reads them."""
    merge, host = vision.config.spatial_merge_size, grids.cpu()
    found = {
        "position_ids": get_vision_position_ids(grids, merge),
        "cu_seqlens": get_vision_cu_seqlens(host),
    }
    if hasattr(vision, "pos_embed"):
        found["interp_indices"], found["interp_weights"] = get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=vision.num_grid_per_side,
            mode=vision.interpolation_mode,
            align_corners=vision.interpolation_align_corners,
            spatial_merge_size=merge,
        )
    else:
        order, ends = get_vision_window_index(
            host, spatial_merge_size=merge, window_size=vision.window_size, patch_size=vision.patch_size
        )
        found["window_index"], found["cu_window_seqlens"] = order.to(grids.device), ends
    return found
