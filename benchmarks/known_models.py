"""Sizes of the models that the recipes name, so that what a training takes is known before a download.

Only numbers, as the models' own config.json on the Hugging Face Hub and their model cards state them:
https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct, https://huggingface.co/nvidia/Cosmos-Reason1-7B (which has
the sizes of Qwen2.5-VL-7B-Instruct).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.families import QWEN2_5_VL, QWEN3_VL, Family


@dataclass(frozen=True)
class KnownModel:
    """A model's ``family``, and what its configuration says of sizes: ``text``, ``vision`` and whether
    embeddings and output head are ``tied``."""

    family: Family
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool

    @property
    def config(self) -> Any:
        """The configuration, all else being its family's defaults."""
        return self.family.model.config_class(
            text_config=self.text, vision_config=self.vision, tie_word_embeddings=self.tied
        )


KNOWN = {
    "Qwen/Qwen3-VL-4B-Instruct": KnownModel(
        QWEN3_VL,
        text={
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        vision={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2560,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        tied=True,
    ),
    "nvidia/Cosmos-Reason1-7B": KnownModel(
        QWEN2_5_VL,
        text={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        tied=False,
    ),
}
