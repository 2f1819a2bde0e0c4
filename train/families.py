"""The model families that the workshop knows: one description each, found by architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import Qwen3VLProcessor

from wafervlm.errors import CheckpointError


class _PictureProcessor(Qwen3VLProcessor):  # type: ignore[misc]
    """Images and text only: the family's video processor needs torchvision, which has no CPU build."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that are saved and loaded."""
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **settings: Any) -> None:
        super().__init__(image_processor, tokenizer, None, **settings)


# Saved folders must name the class that transformers and vLLM look for.
_PictureProcessor.__name__ = "Qwen3VLProcessor"


@dataclass(frozen=True)
class Family:
    """What differs between families: the ``architecture`` that config.json names, the ``model`` and
    ``processor`` classes, and regular expressions, for the whole name of a module, of the linear layers
    of the text core and of the vision tower with its mergers."""

    name: str
    architecture: str
    model: type[Any]
    processor: type[Any]
    text_modules: str
    vision_modules: str

    def lora_targets(self, *, vision: bool) -> str:
        """The regular expression over module names that peft takes as ``target_modules``."""
        return f"{self.text_modules}|{self.vision_modules}" if vision else self.text_modules


QWEN3_VL = Family(
    name="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    model=transformers.Qwen3VLForConditionalGeneration,
    processor=_PictureProcessor,
    text_modules=r".*language_model\..*\.(q|k|v|o|gate|up|down)_proj",
    vision_modules=r".*visual\..*(attn\.qkv|attn\.proj|mlp\.linear_fc[12]|merger(_list\.\d+)?\.linear_fc[12])",
)
FAMILIES = {family.architecture: family for family in (QWEN3_VL,)}


def family_of(architectures: Sequence[str], where: str) -> Family:
    """The family of a configuration's ``architectures``. Raises CheckpointError for one that is not known."""
    for name in architectures:
        if name in FAMILIES:
            return FAMILIES[name]
    raise CheckpointError(
        f"{where} holds {', '.join(architectures) or 'no architecture'}, and supported is "
        f"{', '.join(sorted(FAMILIES))}; choose a checkpoint of that family"
    )
