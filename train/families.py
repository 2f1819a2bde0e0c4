"""The model families that the workshop knows: one description each, found by architecture.

A family's name is the ``model_type`` of its configuration. How its graph is written is described beside
the graph, in export/families.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLVisionAttention,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention, Qwen3VLVisionPatchEmbed

from wafervlm.errors import CheckpointError


def _pictures_only(processor: type[Any]) -> type[Any]:
    """``processor`` for images and text: the families' video processor needs torchvision, which has no CPU
    build."""

    class PictureProcessor(processor):  # type: ignore[misc]
        """Images and text only."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            """The parts that are saved and loaded."""
            return ["image_processor", "tokenizer"]

        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **settings: Any) -> None:
            super().__init__(image_processor, tokenizer, None, **settings)

    # Saved folders must name the class that transformers and vLLM look for.
    PictureProcessor.__name__ = processor.__name__
    return PictureProcessor


@dataclass(frozen=True)
class Family:
    """What differs between families: the ``architecture`` that config.json names, the ``model`` and
    ``processor`` classes, and regular expressions, for the whole name of a module, of the linear layers
    of the text core and of the vision tower with its mergers. ``patch_embedding`` and ``vision_attention``
    are the classes that train.speed has faster forms of. ``legacy_names`` are (pattern, replacement) pairs
    that turn tensor names of older files into those of the modules."""

    name: str
    architecture: str
    model: type[Any]
    processor: type[Any]
    text_modules: str
    vision_modules: str
    patch_embedding: type[Any]
    vision_attention: type[Any]
    legacy_names: tuple[tuple[str, str], ...] = ()

    def lora_targets(self, *, vision: bool) -> str:
        """The regular expression over module names that peft takes as ``target_modules``."""
        return f"{self.text_modules}|{self.vision_modules}" if vision else self.text_modules

    def module_name(self, stored: str) -> str:
        """The model's name of the tensor that a checkpoint file calls ``stored``, in either spelling."""
        for pattern, replacement in self.legacy_names:
            stored = re.sub(pattern, replacement, stored)
        return stored


TEXT_MODULES = r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj"

QWEN3_VL = Family(
    name="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    model=transformers.Qwen3VLForConditionalGeneration,
    processor=_pictures_only(transformers.Qwen3VLProcessor),
    text_modules=TEXT_MODULES,
    vision_modules=r".*visual\..*(attn\.qkv|attn\.proj|mlp\.linear_fc[12]|merger(_list\.\d+)?\.linear_fc[12])",
    patch_embedding=Qwen3VLVisionPatchEmbed,
    vision_attention=Qwen3VLVisionAttention,
)
# Cosmos-Reason1 is of this family. Its files, and those that transformers writes, have the older names.
QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    model=transformers.Qwen2_5_VLForConditionalGeneration,
    processor=_pictures_only(transformers.Qwen2_5_VLProcessor),
    text_modules=TEXT_MODULES,
    vision_modules=r".*visual\..*(attn\.qkv|attn\.proj|mlp\.(gate|up|down)_proj|merger\.mlp\.[02])",
    patch_embedding=Qwen2_5_VisionPatchEmbed,
    vision_attention=Qwen2_5_VLVisionAttention,
    legacy_names=(
        (r"^visual\.", "model.visual."),
        (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
    ),
)
FAMILIES = {family.architecture: family for family in (QWEN3_VL, QWEN2_5_VL)}


def family_of(architectures: Sequence[str], where: str) -> Family:
    """The family of a configuration's ``architectures``. Raises CheckpointError for one that is not known."""
    for name in architectures:
        if name in FAMILIES:
            return FAMILIES[name]
    raise CheckpointError(
        f"{where} holds {', '.join(architectures) or 'no architecture'}, and supported is "
        f"{', '.join(sorted(FAMILIES))}; choose a checkpoint of that family"
    )
