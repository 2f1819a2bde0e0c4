"""A checkpoint asked in words: greedy generation by transformers, in batches."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from benchmarks.assessment.speaker import Asked
from benchmarks.scores import checkpoint_log_probs
from benchmarks.statistics import Floats
from train.dataset import Sample
from train.encoding import check_image_size, encode_texts, prompt_text
from train.loading import load_checkpoint
from train.speed import fast_vision
from train.vqa.replies import Reply
from wafervlm.render import render
from wafervlm.task import Task


class Generator:
    """A checkpoint folder, with the LoRA ``adapter`` folder on top where given, asked on images of ``task``:
    bfloat16 on a GPU, float32 on a CPU."""

    def __init__(self, folder: Path, adapter: Path | None, task: Task, *, device: str, batch: int) -> None:
        self.numbers = "bfloat16" if device.startswith("cuda") else "float32"
        self.checkpoint = load_checkpoint(folder, dtype=self.numbers, device=device, adapter=adapter)
        fast_vision(self.checkpoint.network)
        check_image_size(self.checkpoint.processor, task.render.height, task.render.width)
        self._task, self._batch, self.task = task, batch, task.digest
        self.about = f"transformers, {self.numbers}{', with an adapter' if adapter else ''}"

    def answers(self, asked: Sequence[Asked], max_tokens: int) -> Iterator[tuple[int, Reply]]:
        texts = [self._prompt(one) for one in asked]
        for places in self._batches(texts):
            images = [render(asked[place].wafer, self._task.render) for place in places]
            inputs = encode_texts(self.checkpoint, [texts[place] for place in places], images)
            yield from zip(places, self._generate(inputs, max_tokens), strict=True)

    def log_probs(self, samples: Sequence[Sample], what: str) -> Floats:
        return checkpoint_log_probs(self.checkpoint, self._task, samples, what)

    def _prompt(self, one: Asked) -> str:
        task = replace(self._task, prompt=one.question, system=one.system or self._task.system)
        return prompt_text(self.checkpoint.processor, task)

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Places of prompts of one length: without padding a batch answers as each wafer alone would."""
        tokenizer = self.checkpoint.tokenizer
        lengths = {text: len(tokenizer(text)["input_ids"]) for text in set(texts)}
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            by_length[lengths[text]].append(place)
        for places in by_length.values():
            for start in range(0, len(places), self._batch):
                yield places[start : start + self._batch]

    @torch.inference_mode()
    def _generate(self, inputs: dict[str, torch.Tensor], max_tokens: int) -> list[Reply]:
        tokenizer = self.checkpoint.tokenizer
        end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        whole = self.checkpoint.model.generate(
            **inputs, do_sample=False, max_new_tokens=max_tokens, eos_token_id=end, pad_token_id=pad
        )
        prompt = inputs["input_ids"].shape[1]
        replies = []
        for tokens in whole[:, prompt:].tolist():
            ended = end in tokens
            said = tokens[: tokens.index(end)] if ended else tokens
            text = tokenizer.decode(said, skip_special_tokens=True).strip()
            replies.append(Reply(text, "stop" if ended else "length", prompt, len(said) + ended))
        return replies

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The next subject is loaded into the same memory.
        del self.checkpoint
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
