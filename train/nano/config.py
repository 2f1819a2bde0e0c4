"""The shape of nano, its tokenizer and chat template, and the folder of an untrained model.

The classes are those of transformers, so that nano takes the same path as a 4B: only the sizes differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN, END_OF_TURN, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

# How the family cuts text before byte-pair merges: contractions, words with their leading space, single
# digits, punctuation, line ends.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The family's conversation format: turns between <|im_start|> and <|im_end|>, an image as three tokens
# of which the processor repeats the middle one.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{- part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@dataclass(frozen=True)
class Shape:
    """Sizes of a small Qwen3-VL; the rest is derived."""

    text_layers: int = 3
    text_width: int = 256
    text_heads: int = 4
    text_kv_heads: int = 2
    head_dim: int = 64
    text_mlp: int = 512
    vision_layers: int = 6
    vision_width: int = 128
    vision_heads: int = 4
    patch: int = 8
    image: int = 112
    deepstack: tuple[int, ...] = (1, 3)
    vocabulary: int = 768


NANO = Shape()
TINY = Shape(
    text_layers=2,
    text_width=64,
    text_heads=2,
    text_kv_heads=1,
    head_dim=32,
    text_mlp=128,
    vision_layers=3,
    vision_width=32,
    vision_heads=2,
    patch=8,
    image=64,
    deepstack=(0, 1),
    vocabulary=384,
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer of at most ``vocabulary`` entries, special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TURN,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[*SPECIAL_TOKENS[1:2], *SPECIAL_TOKENS[3:]],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        chat_template=CHAT_TEMPLATE,
    )
    for name in ("image", "video"):
        setattr(fast, f"{name}_token", f"<|{name}_pad|>")
    return fast


def model_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """The transformers configuration of ``shape`` with the token ids of ``tokenizer``."""
    half = shape.head_dim // 2
    section = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKEN_KEYS.items()}
    return Qwen3VLConfig(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": shape.text_width,
            "intermediate_size": shape.text_mlp,
            "num_hidden_layers": shape.text_layers,
            "num_attention_heads": shape.text_heads,
            "num_key_value_heads": shape.text_kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_interleaved": True,
                "mrope_section": section,
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_width * 4,
            "num_heads": shape.vision_heads,
            "patch_size": shape.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": shape.text_width,
            "num_position_embeddings": (shape.image // shape.patch) ** 2,
            "deepstack_visual_indexes": list(shape.deepstack),
        },
        tie_word_embeddings=True,
        **ids,
    )


def build_model_folder(out: Path, shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Write an untrained model of ``shape`` to ``out``: configuration, weights, tokenizer, processor."""
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(model_config(shape, tokenizer)).float().eval()
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.do_sample = False
    model.save_pretrained(out)
    save_processor_files(out, shape, tokenizer)


def save_processor_files(out: Path, shape: Shape, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write tokenizer, chat template and image processor configuration to ``out``."""
    tokenizer.save_pretrained(out)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (out / "preprocessor_config.json").write_text(
        json.dumps(_preprocessor(shape), indent=2) + "\n", encoding="utf-8"
    )


def describe(shape: Shape) -> dict[str, Any]:
    """Plain values of ``shape`` for a provenance record."""
    return asdict(shape)


def _preprocessor(shape: Shape) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": shape.image**2, "longest_edge": shape.image**2},
        "patch_size": shape.patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


_TOKEN_KEYS = {
    "image_token_id": IMAGE_PAD,
    "video_token_id": VIDEO_PAD,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
