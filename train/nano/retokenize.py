"""A base under another tokenizer: every new token begins as the mean of the old tokens that spell it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from train.nano.config import SPECIAL_TOKENS, Shape, model_config

EMBEDDING = "model.language_model.embed_tokens.weight"
_TIED = "lm_head.weight"


def retokenized(model: Any, old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, shape: Shape) -> Any:
    """A model of ``shape`` with the weights of ``model``, whose tokens are ``old``'s, for the tokens of
    ``new``; both cut text into bytes alike. Rows that no token uses are 0."""
    other = Qwen3VLForConditionalGeneration(model_config(shape, new)).float().eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in (EMBEDDING, _TIED)}
    rows = model.get_input_embeddings().weight.detach()
    made = torch.zeros_like(other.get_input_embeddings().weight)
    for token, index in new.get_vocab().items():
        made[index] = rows[_pieces(token, old)].mean(dim=0)
    left = other.load_state_dict({**state, EMBEDDING: made}, strict=False)
    if left.unexpected_keys or set(left.missing_keys) - {_TIED}:
        raise ValueError(f"weights do not fit: {left}")
    other.tie_weights()
    return other


def _pieces(token: str, old: PreTrainedTokenizerFast) -> list[int]:
    """The ids of ``old`` that spell ``token``, which is written as its bytes are."""
    if token in SPECIAL_TOKENS:
        return [int(old.convert_tokens_to_ids(token))]
    return [piece.id for piece in old.backend_tokenizer.model.tokenize(token)]
