"""The tensors of a checkpoint folder, read from safetensors one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibrate.pack import PACKED, read_packed
from train.families import family_of
from train.loading import read_config
from train.shards import Shards
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
    """A linear layer whose weight is ``levels`` (K, N) int8, -8 to 7, times ``scales`` (K / group_size, N)
    float32, each scale for ``group_size`` rows, with a bias (N,) float32 or None."""

    levels: NDArray[np.int8]
    scales: Array
    bias: Array | None = None

    @property
    def group_size(self) -> int:
        """Rows that share a scale."""
        return int(self.levels.shape[0] // self.scales.shape[0])

    def dense(self) -> Dense:
        """The same layer with its weight multiplied out."""
        weight = self.levels.astype(np.float32) * np.repeat(self.scales, self.group_size, axis=0)
        return Dense(weight, self.bias)


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
    """One layer whose outputs are those of ``layers``, which read the same input, one after the other.

    Raises CheckpointError where only some are quantized, or only some have a bias.
    """
    bias = _joined_bias(layers)
    quantized = [layer for layer in layers if isinstance(layer, Quantized)]
    dense = [layer for layer in layers if isinstance(layer, Dense)]
    if len(dense) == len(layers):
        return Dense(np.concatenate([layer.weight for layer in dense], axis=1), bias)
    if len(quantized) != len(layers) or len({layer.group_size for layer in quantized}) != 1:
        raise CheckpointError(
            "layers that read the same input are quantized differently; quantize all or none"
        )
    return Quantized(
        np.concatenate([layer.levels for layer in quantized], axis=1),
        np.concatenate([layer.scales for layer in quantized], axis=1),
        bias,
    )


def _joined_bias(layers: Sequence[Linear]) -> Array | None:
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases and len(biases) != len(layers):
        raise CheckpointError("of the layers that read the same input only some have a bias")
    return np.concatenate(biases) if biases else None


class Weights:
    """The configuration and the tensors of a checkpoint folder, full precision or AutoGPTQ v1 layout.

    Tensors go by the model's names, whichever spelling the files have. Nothing is kept: every call reads
    from the files. Raises CheckpointError for another architecture, for tensors that are missing and for
    files that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        values = read_config(self.path)
        family = family_of(list(values.get("architectures") or []), str(self.path))
        self.config = family.model.config_class.from_dict(values)
        self.quantization: dict[str, Any] = values.get("quantization_config") or {}
        self._shards = Shards(self.path)
        self._stored = {family.module_name(name): name for name in self._shards.slots}

    def has(self, name: str) -> bool:
        """Whether there is a tensor ``name``."""
        return name in self._stored

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor ``name`` as stored."""
        return self._shards.tensor(self._stored.get(name, name))

    def rows(self, name: str, indices: Sequence[int]) -> Array:
        """These rows of the matrix ``name`` as float32; no others are read. Raises CheckpointError for a row
        that it does not have."""
        stored = self._stored.get(name, name)
        there = self._shards.slot(stored).shape[0]
        if indices and not 0 <= max(indices) < there:
            raise CheckpointError(
                f"{self.path} has {there} rows in {name}, and token {max(indices)} of its tokenizer is not "
                "among them; take model and tokenizer from one checkpoint"
            )
        rows = [self._shards.rows(stored, index, index + 1) for index in indices]
        values: Array = torch.cat(rows).float().numpy() if rows else self.array(name)[:0]
        return values

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
            self.array(f"{name}.bias") if self.has(f"{name}.bias") else None,
        )
