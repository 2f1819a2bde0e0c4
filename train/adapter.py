"""Adapter folders: what an adapter trains, and going on from one that was trained before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from train.loading import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from wafervlm.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
_TOKENS = "embed_tokens"
_ROWS = "token_adapter.trainable_tokens_delta"


def trained_tokens(adapter: Path) -> list[int]:
    """The ids whose embeddings the adapter folder trains, ascending; none where it leaves them alone.
    Raises CheckpointError."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (adapter / name).is_file():
            raise CheckpointError(f"{adapter} is not an adapter folder: it has no {name}")
    indices = PeftConfig.from_pretrained(str(adapter)).trainable_token_indices or {}
    return sorted(indices[_TOKENS]) if isinstance(indices, dict) else sorted(indices)


def go_on_from(model: Any, adapter: Path, tokens: list[int]) -> None:
    """Put the tensors of the folder ``adapter`` into the fresh adapter of ``model``, which trains the
    embeddings of ``tokens``: those of the folder and others. Raises CheckpointError where an adapter of
    another rank or of other modules lies there."""
    found, before = load_file(adapter / ADAPTER_WEIGHTS), trained_tokens(adapter)
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    start = {name: _grown(tensor, found.get(name), tokens, before, name) for name, tensor in wanted.items()}
    unfit = [name for name, tensor in start.items() if tensor is None or tensor.shape != wanted[name].shape]
    unfit += sorted(set(found) - set(wanted))
    if unfit:
        raise CheckpointError(
            f"the adapter in {adapter} does not fit: {unfit[0]} and {len(unfit) - 1} more tensors are "
            "missing or of another shape; go on with the rank and the modules that it was trained with"
        )
    set_peft_model_state_dict(model, start)


def _grown(
    fresh: torch.Tensor, found: torch.Tensor | None, tokens: list[int], before: list[int], name: str
) -> torch.Tensor | None:
    """``found``, or for rows of embeddings ``fresh`` with the rows that ``found`` has."""
    if not name.endswith(_ROWS):
        return found
    if found is None:
        return fresh
    place = {token: row for row, token in enumerate(tokens)}
    grown = fresh.detach().clone()
    grown[[place[token] for token in before]] = found.to(grown)
    return grown
