"""How the graph of each family is written; families are named as in train/families.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3

from export.vision import VisionTower
from export.vision_qwen2_5 import Qwen2_5Vision
from export.vision_qwen3 import Qwen3Vision
from train.families import QWEN2_5_VL, QWEN3_VL


@dataclass(frozen=True)
class GraphFamily:
    """What the graphs of families differ in. transformers' own classes supply what is constant: ``model``
    the positions of tokens, ``text_rotary`` the rotary tables, ``decoder_layer`` the keys and values of
    fixed text. ``head_norms`` says whether each head's queries and keys are normalised; biases are read
    where the checkpoint has them. ``vision`` writes the vision tower."""

    model: type[Any]
    text_rotary: type[Any]
    decoder_layer: type[Any]
    head_norms: bool
    vision: type[VisionTower]


GRAPHS = {
    QWEN3_VL.name: GraphFamily(
        model=qwen3.Qwen3VLModel,
        text_rotary=qwen3.Qwen3VLTextRotaryEmbedding,
        decoder_layer=qwen3.Qwen3VLTextDecoderLayer,
        head_norms=True,
        vision=Qwen3Vision,
    ),
    QWEN2_5_VL.name: GraphFamily(
        model=qwen2_5.Qwen2_5_VLModel,
        text_rotary=qwen2_5.Qwen2_5_VLRotaryEmbedding,
        decoder_layer=qwen2_5.Qwen2_5_VLDecoderLayer,
        head_norms=False,
        vision=Qwen2_5Vision,
    ),
}


def graph_family(config: Any) -> GraphFamily:
    """How the graph of a checkpoint with this transformers configuration is written."""
    return GRAPHS[config.model_type]
