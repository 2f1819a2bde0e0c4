"""What a reinforcement learning will do, said beforehand: ``wafervlm train --config rl.toml --dry-run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from train.dataset import dataset_task
from train.loading import load_processor
from train.rl.assembly import read_course
from train.rl.prompts import Prompts
from train.rl.settings import RlSettings
from train.vqa.rows import DIFFICULTIES

_GIB = 2**30


def plan(settings: RlSettings) -> dict[str, Any]:
    """Prompts, rounds, steps and answers of a training, the tokens that these may have, and the memory in GiB
    of what grows with the settings; nothing is trained. Raises DatasetError, TaskError or CheckpointError."""
    course = read_course(settings)
    prompts = Prompts(
        load_processor(settings.model.base),
        dataset_task(Path(settings.data.dataset)),
        tags=settings.rl.tags,
    )
    longest = max(course.train, key=lambda row: len(row.question))
    prompt_tokens = prompts.length(longest)
    levels = [row.row.difficulty for row in course.train]
    rounds = course.steps // settings.round_steps
    return {
        "prompts": {name: levels.count(name) for name in DIFFICULTIES},
        "tune_prompts": len(course.tune),
        "rounds": rounds,
        "steps": course.steps,
        "answers": rounds * settings.answers,
        "prompt_tokens": prompt_tokens,
        "answer_tokens_at_most": rounds * settings.answers * settings.rl.max_tokens,
        "memory_gib": memory(settings, prompt_tokens),
    }


def memory(settings: RlSettings, prompt_tokens: int) -> dict[str, float]:
    """GiB of the ``weights`` as stored, of the ``cache`` of keys and values while the answers of a round are
    drawn, all at once and as long as they may be, and of the layers' inputs that recomputing keeps for the
    backward pass of one batch (``activations``; without recomputing they are about ten times that)."""
    base, width = Path(settings.model.base), 2 if settings.model.precision == "bfloat16" else 4
    text = AutoConfig.from_pretrained(base, local_files_only=True).get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tokens = prompt_tokens + settings.rl.max_tokens
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * head
    kept = text.num_hidden_layers * text.hidden_size
    found = {
        "weights": sum(file.stat().st_size for file in base.glob("*.safetensors")),
        "cache": width * cached * tokens * settings.answers,
        "activations": width * kept * tokens * settings.train.batch,
    }
    return {name: round(size / _GIB, 3) for name, size in found.items()}
