"""A GPTQ checkpoint as a source of full-precision weights, each multiplied out when it is asked for."""

from __future__ import annotations

from pathlib import Path

import torch

from calibrate.pack import PACKED, _checked_bits, read_packed
from train.loading import Checkpoint, checkpoint_family, read_config
from train.streamed import Stored, load_streamed


class MultipliedOut(Stored):
    """The tensors of a GPTQ folder in the AutoGPTQ v1 layout, in float32. Raises CheckpointError for a layout
    that is not supported."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, checkpoint_family(path))
        self._bits = _checked_bits(read_config(path).get("quantization_config"), path)

    def tensor(self, name: str) -> torch.Tensor:
        layer = name.removesuffix(".weight")
        if f"{layer}.qweight" not in self.names:
            return super().tensor(name)
        parts = [f"{layer}.{part}" for part in PACKED if f"{layer}.{part}" in self.names]
        packed = {part: self.shards.tensor(self.names[part]) for part in parts}
        return read_packed(packed, layer, self._bits).dense()


def load_reference_streamed(path: Path, device: str = "cpu") -> Checkpoint:
    """The checkpoint ``path``, quantized or not, in float32 with one layer in memory at a time: gives what
    ``load_quantized`` and ``load_checkpoint`` give. Raises CheckpointError."""
    family = checkpoint_family(path)
    quantized = "quantization_config" in read_config(path)
    source = MultipliedOut(path) if quantized else Stored(path, family)
    return load_streamed(path, family, source, device=device)
