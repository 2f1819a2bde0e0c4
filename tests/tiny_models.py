"""Tiny random-weight checkpoints, one of each model family, with their processors: what tests run on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from train.loading import quiet_transformers
from train.nano.config import (
    IMAGE_PAD,
    TINY,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    build_model_folder,
    model_config,
    train_tokenizer,
)
from train.nano.corpus import tokenizer_texts

# As Qwen2.5-VL publishes it, but for videos: a system message of its own, and an image by any of its names.
QWEN2_5_TEMPLATE = """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}\
{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of at most 384 entries with nano's chat template."""
    return train_tokenizer(tokenizer_texts(seed=1, scenes=20), TINY.vocabulary)


def build_qwen3(folder: Path) -> None:
    """A Qwen3-VL of 0.3 M parameters."""
    build_model_folder(folder, TINY, tiny_tokenizer(), seed=1)


def build_qwen2_5(folder: Path) -> None:
    """A Qwen2.5-VL of 0.2 M parameters, untied, with files named as those that are published: a border of
    smaller windows, windowed and full-attention blocks, biases that are not 0, each channel's own
    normalisation."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QWEN2_5_TEMPLATE
    torch.manual_seed(1)
    model = Qwen2_5_VLForConditionalGeneration(qwen2_5_config(tokenizer)).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_(std=0.05)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.do_sample = False
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN2_5_TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))


def qwen2_5_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Two text layers, three vision blocks of which the second sees the whole image, windows of 56 pixels."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image_token_id": IMAGE_PAD,
            "video_token_id": VIDEO_PAD,
            "vision_start_token_id": VISION_START,
            "vision_end_token_id": VISION_END,
        }.items()
    }
    text: dict[str, Any] = {
        "vocab_size": model_config(TINY, tokenizer).text_config.vocab_size,
        "hidden_size": TINY.text_width,
        "intermediate_size": TINY.text_mlp,
        "num_hidden_layers": TINY.text_layers,
        "num_attention_heads": TINY.text_heads,
        "num_key_value_heads": TINY.text_kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision: dict[str, Any] = {
        "depth": TINY.vision_layers,
        "hidden_size": TINY.vision_width,
        "intermediate_size": 40,
        "num_heads": TINY.vision_heads,
        "out_hidden_size": TINY.text_width,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


_PREPROCESSOR = {
    "min_pixels": 56 * 56,
    "max_pixels": 112 * 112,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}

# By family; tests/conftest.py has the side of the images.
BUILDERS: dict[str, Callable[[Path], None]] = {"qwen3_vl": build_qwen3, "qwen2_5_vl": build_qwen2_5}
