"""Settings for the tiny model, and a judge that it can learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.rl.rows import PolicyRow
from train.rl.settings import RlSettings, read_rl_settings

BRIEF: dict[str, Any] = {
    "model.device": "cpu",
    "data.tune_rows": 9,
    "data.tune_maps": 0,
    "lora.rank": 8,
    "rl.prompts": 2,
    "rl.completions": 8,
    "rl.max_tokens": 3,
    "rl.updates": 2,
    "rl.tags": False,
    "train.batch": 8,
    "train.learning_rate": 1e-2,
    "train.evaluations": 1,
    "train.threads": 1,
}


def brief(out: Path, base: Path, words: Path, **others: Any) -> RlSettings:
    """Settings of a training of a few seconds; ``others`` with ``__`` for the dot, None to leave one out."""
    values = {"output": str(out), "model.base": str(base), "data.dataset": str(words), **BRIEF}
    values |= {key.replace("__", "."): value for key, value in others.items()}
    empty = out.with_name(f"{out.name}.toml")
    empty.parent.mkdir(parents=True, exist_ok=True)
    empty.write_text("[rl]\n")
    return read_rl_settings(empty, (), {key: value for key, value in values.items() if value is not None})


def vowels(_row: PolicyRow, text: str, _ended: bool) -> dict[str, float | None]:
    """A judge that pays for the share of vowels in an answer."""
    return {"rubric": sum(letter in "aeiou" for letter in text) / max(len(text), 1)}
