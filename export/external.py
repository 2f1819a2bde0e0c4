"""WeightFile: the file of weights beside a graph, written while the graph is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import IO

import onnx_ir as ir

# Pages: what a runtime maps into memory begins at one.
ALIGNMENT = 4096
# Below it lie shapes and axes, which runtimes and TensorRT's parser want to see in the graph itself.
SMALLEST = 4096


class WeightFile:
    """Appends tensors to ``path`` and gives back tensors that point there, so that no more than one of them
    is in memory. Use as a context manager; the graph must be saved into the same folder.

    A tensor that comes again under its name with the same values is not stored again: graphs written with
    one WeightFile share their weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._stored: dict[tuple[str, bytes], ir.ExternalTensor] = {}

    def __enter__(self) -> WeightFile:
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def store(self, tensor: ir.Tensor, name: str) -> ir.TensorProtocol:
        """``tensor`` itself where it is small, else one that points to where it was written."""
        if tensor.nbytes < SMALLEST:
            return tensor
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        data = tensor.tobytes()
        key = name, hashlib.blake2b(data, digest_size=16).digest()
        if key not in self._stored:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            offset = self._file.tell()
            self._file.write(data)
            self._stored[key] = ir.ExternalTensor(
                self.path.name,
                offset,
                len(data),
                tensor.dtype,
                shape=ir.Shape(tensor.shape),
                name=name,
                base_dir=self.path.parent,
            )
        return self._stored[key]
