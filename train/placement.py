"""Where and in what numbers a training computes, where its settings leave that to the machine."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch

# Settings of a training: fields ``model`` (device, precision) and ``train`` (gradient_checkpointing).
Placed = TypeVar("Placed", bound=Any)


def decided(settings: Placed) -> Placed:
    """``settings`` with every "auto" decided: for the device that they name, or else this machine's."""
    device = settings.model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    precision, recompute = settings.model.precision, settings.train.gradient_checkpointing
    if precision == "auto":
        precision = "bfloat16" if on_gpu else "float32"
    if recompute == "auto":
        recompute = "on" if on_gpu else "off"
    placed: Placed = dataclasses.replace(
        settings,
        model=dataclasses.replace(settings.model, device=device, precision=precision),
        train=dataclasses.replace(settings.train, gradient_checkpointing=recompute),
    )
    return placed
