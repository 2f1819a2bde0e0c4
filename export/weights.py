"""The tensors of a checkpoint folder, read from safetensors one layer at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from transformers import Qwen3VLConfig

from calibrate.pack import PACKED, read_packed
from train.families import QWEN3_VL, family_of
from train.loading import read_config
from wafervlm.errors import CheckpointError

Array = NDArray[np.float32]
HIGHEST_LEVEL, HIGHEST_INTEGER = 7, 64


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer ``x @ weight + bias``: weight (K, N) float32, bias (N,) or None."""

    weight: Array
    bias: Array | None = None


@dataclass(frozen=True, slots=True)
class Quantized:
    """A linear layer without bias whose weight is ``levels`` (K, N) int8, -8 to 7, times ``scales``
    (K / group_size, N) float32, each scale for ``group_size`` rows."""

    levels: NDArray[np.int8]
    scales: Array

    @property
    def group_size(self) -> int:
        """Rows that share a scale."""
        return int(self.levels.shape[0] // self.scales.shape[0])

    def dense(self) -> Dense:
        """The same layer with its weight multiplied out."""
        return Dense(self.levels.astype(np.float32) * np.repeat(self.scales, self.group_size, axis=0))


@dataclass(frozen=True, slots=True)
class Integer:
    """A linear layer computed in 8-bit integers: ``levels`` (K, N) int8 times ``scales`` (N,) float32, one
    for each output, and a bias (N,) or None. Its input is quantized when it is known, with
    one scale over the whole tensor, so all images of a batch share it.

    Levels stay within -64 to 64: processors before VNNI add two products of an unsigned and a signed byte
    in 16 bits, which full 8-bit levels overflow without a word.
    """

    levels: NDArray[np.int8]
    scales: Array
    bias: Array | None = None

    @classmethod
    def of(cls, layer: Dense) -> Integer:
        """``layer`` with its weight rounded to the nearest level, symmetrically about zero."""
        scales = np.maximum(np.abs(layer.weight).max(axis=0), np.finfo(np.float32).tiny) / HIGHEST_INTEGER
        levels = np.rint(layer.weight / scales).astype(np.int8)
        return cls(levels, scales.astype(np.float32), layer.bias)


Linear = Dense | Quantized


def side_by_side(layers: Sequence[Linear]) -> Linear:
    """One layer whose outputs are those of ``layers``, which read the same input, one after the other."""
    first = layers[0]
    if isinstance(first, Quantized):
        quantized = [layer for layer in layers if isinstance(layer, Quantized)]
        if len(quantized) == len(layers) and len({layer.group_size for layer in quantized}) == 1:
            return Quantized(
                np.concatenate([layer.levels for layer in quantized], axis=1),
                np.concatenate([layer.scales for layer in quantized], axis=1),
            )
    dense = [layer for layer in layers if isinstance(layer, Dense)]
    if len(dense) != len(layers):
        raise CheckpointError(
            "layers that read the same input are quantized differently; quantize all or none"
        )
    biases = [layer.bias for layer in dense if layer.bias is not None]
    if biases and len(biases) != len(dense):
        raise CheckpointError("of the layers that read the same input only some have a bias")
    return Dense(
        np.concatenate([d.weight for d in dense], axis=1), np.concatenate(biases) if biases else None
    )


class Weights:
    """The configuration and the tensors of a Qwen3-VL folder, full precision or AutoGPTQ v1 layout.

    Nothing is kept: every call reads from the files. Raises CheckpointError for another architecture and
    for tensors that are missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        values = read_config(self.path)
        family = family_of(list(values.get("architectures") or []), str(self.path))
        if family is not QWEN3_VL:
            raise CheckpointError(f"{self.path} holds {family.architecture}, for which there is no graph")
        self.config = Qwen3VLConfig.from_dict(values)
        self.quantization: dict[str, Any] = values.get("quantization_config") or {}
        self._files = _tensor_files(self.path)

    def has(self, name: str) -> bool:
        """Whether there is a tensor ``name``."""
        return name in self._files

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor ``name`` as stored."""
        if name not in self._files:
            raise CheckpointError(f"{self.path} has no tensor {name!r}; it is not a whole checkpoint")
        with safe_open(self._files[name], framework="pt") as file:
            found: torch.Tensor = file.get_tensor(name)
            return found

    def array(self, name: str) -> Array:
        """The tensor ``name`` as float32."""
        values: Array = self.tensor(name).float().numpy()
        return values

    def linear(self, name: str) -> Linear:
        """The linear layer ``name``, quantized where the checkpoint stores it so."""
        if self.has(f"{name}.qweight"):
            return self._quantized(name)
        bias = self.array(f"{name}.bias") if self.has(f"{name}.bias") else None
        return Dense(np.ascontiguousarray(self.array(f"{name}.weight").T), bias)

    def _quantized(self, name: str) -> Quantized:
        parts = {f"{name}.{part}" for part in PACKED}
        tensors = {part: self.tensor(part) for part in parts if self.has(part)}
        weight = read_packed(tensors, name, int(self.quantization.get("bits", 4)))
        if weight.levels.min() < -HIGHEST_LEVEL - 1 or weight.levels.max() > HIGHEST_LEVEL:
            raise CheckpointError(
                f"{name} has weights of more than 4 bits; export writes 4 bits or full precision"
            )
        return Quantized(
            np.ascontiguousarray(weight.levels.numpy().T),
            np.ascontiguousarray(weight.scales.float().numpy().T),
        )


def _tensor_files(path: Path) -> dict[str, Path]:
    """Tensor name to the file that holds it."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return {name: path / file for name, file in _read_json(index)["weight_map"].items()}
    single = path / "model.safetensors"
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {single}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold one JSON object")
    return values
