"""The tensors of a checkpoint folder one at a time: read by name or by rows, and written to shards.

Neither needs the memory of more than one tensor. Files are named and cut as Hugging Face does: one
``model.safetensors``, or ``model-00001-of-0000N.safetensors`` and so on with an index beside them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open

from wafervlm.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """Name, dtype and shape of one stored tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """Reads a checkpoint folder, whose file is called ``single`` where there is but one. ``slots`` are its
    tensors in the order of the files, known from headers.

    Raises CheckpointError for a shard that is missing or cut off, a tensor that the index names and its
    shard lacks, and for numbers that are not supported, float8 among them.
    """

    def __init__(self, path: Path, single: str = SINGLE) -> None:
        self.path = Path(path)
        self.slots: dict[str, Slot] = {}
        self._files: dict[str, Path] = {}
        for file, names in _files(self.path, single).items():
            self._read_header(file, names)

    def __contains__(self, name: object) -> bool:
        return name in self.slots

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(slot.nbytes for slot in self.slots.values())

    def slot(self, name: str) -> Slot:
        """Dtype and shape of the tensor ``name``. Raises CheckpointError where there is none."""
        if name not in self.slots:
            raise CheckpointError(f"{self.path} has no tensor {name!r}; it is not a whole checkpoint")
        return self.slots[name]

    def file(self, name: str) -> Path:
        """The file that holds the tensor ``name``."""
        return self._files[name]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor ``name`` as stored; its pages are read from the file when they are used."""
        slot = self.slot(name)
        with safe_open(self._files[slot.name], framework="pt") as file:
            found: torch.Tensor = file.get_tensor(slot.name)
            return found

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of the tensor ``name``, and no others, as stored."""
        slot = self.slot(name)
        with safe_open(self._files[slot.name], framework="pt") as file:
            found: torch.Tensor = file.get_slice(slot.name)[start:stop]
            return found

    def _read_header(self, file: Path, names: Sequence[str] | None) -> None:
        try:
            with safe_open(file, framework="pt") as stored:
                held = list(stored.keys())
                if names is not None and (lacking := sorted(set(names) - set(held))):
                    raise CheckpointError(
                        f"{file} lacks {lacking[0]}, which {INDEX} says is there; fetch the checkpoint again"
                    )
                for name in held:
                    part = stored.get_slice(name)
                    self.slots[name] = Slot(
                        name, _dtype(part.get_dtype(), name, self.path), tuple(part.get_shape())
                    )
                    self._files[name] = file
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path} lacks the file {file.name}; fetch the checkpoint again, whole"
            ) from None
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {file}: {error}; fetch the checkpoint again") from None


class ShardWriter:
    """Writes the tensors that ``slots`` announce to ``folder``, in any order, each whole or piece by piece.

    Use as a context manager: on leaving it the index is written. ``limit`` is the most that one shard
    holds, in bytes; a tensor above it has a shard of its own.
    """

    def __init__(self, folder: Path, slots: Iterable[Slot], limit: int = SHARD_BYTES) -> None:
        self._folder = folder
        shards = plan_shards(list(slots), limit)
        self.files = shard_names(len(shards))
        self._places: dict[str, tuple[str, int, Slot]] = {}
        self._open: dict[str, IO[bytes]] = {}
        self._left: set[str] = set()
        for file, held in zip(self.files, shards, strict=True):
            self._begin(file, held)

    def write(self, name: str, pieces: torch.Tensor | Iterable[torch.Tensor]) -> None:
        """Store the tensor ``name``, given whole or as consecutive pieces along its first dimension."""
        file, place, slot = self._places[name]
        stream, written = self._open[file], 0
        stream.seek(place)
        for piece in [pieces] if isinstance(pieces, torch.Tensor) else pieces:
            if piece.dtype != slot.dtype:
                raise ValueError(f"{name} was announced as {slot.dtype} and is {piece.dtype}")
            data = piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            written += stream.write(data.data)
        if written != slot.nbytes:
            raise ValueError(f"{name} was announced with {slot.nbytes} bytes and has {written}")
        self._left.discard(name)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open.values():
            stream.close()
        if kind is not None:
            return
        if self._left:
            raise ValueError(f"{min(self._left)} was announced and not written")
        if len(self.files) > 1:
            index = {
                "metadata": {"total_size": sum(slot.nbytes for _, _, slot in self._places.values())},
                "weight_map": {name: file for name, (file, _, _) in sorted(self._places.items())},
            }
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _begin(self, file: str, held: Sequence[Slot]) -> None:
        # Wide numbers first, so that every tensor lies at a multiple of its number's size.
        ordered = sorted(held, key=lambda slot: -slot.dtype.itemsize)
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for slot in ordered:
            entries[slot.name] = {
                "dtype": _NAMES[slot.dtype],
                "shape": list(slot.shape),
                "data_offsets": [end, end + slot.nbytes],
            }
            end += slot.nbytes
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        first = 8 + len(header)
        stream = (self._folder / file).open("w+b")
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(first + end)
        self._open[file] = stream
        for slot in ordered:
            self._places[slot.name] = file, first + entries[slot.name]["data_offsets"][0], slot
            self._left.add(slot.name)


def check_finite(path: Path) -> None:
    """Read every tensor of the checkpoint folder ``path``. Raises CheckpointError that names the first one
    with a number that is not finite, and its file."""
    shards = Shards(path)
    for name in shards.slots:
        tensor = shards.tensor(name)
        if tensor.is_floating_point() and (bad := int((~torch.isfinite(tensor)).sum())):
            raise CheckpointError(
                f"{shards.file(name)}: {bad} of the {tensor.numel()} numbers of {name} are not finite; fetch "
                "the checkpoint again, or train or merge it again"
            )


def plan_shards(slots: Sequence[Slot], limit: int) -> list[list[Slot]]:
    """``slots`` in order, a new shard begun where one would grow above ``limit`` bytes."""
    shards: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if shards[-1] and size + slot.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += slot.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """The file names of ``count`` shards."""
    if count == 1:
        return [SINGLE]
    return [f"model-{place:05d}-of-{count:05d}.safetensors" for place in range(1, count + 1)]


def _files(path: Path, single: str) -> Mapping[Path, Sequence[str] | None]:
    """The files of a checkpoint and the tensors that its index places in each; None without an index."""
    index = path / INDEX
    if not index.is_file():
        return {path / single: None}
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        found: dict[Path, list[str]] = {path / file: [] for file in sorted(set(places.values()))}
        for name, file in places.items():
            found[path / file].append(name)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from None
    return found


def _dtype(stored: str, name: str, path: Path) -> torch.dtype:
    if stored in _DTYPES:
        return _DTYPES[stored]
    what = "float8 numbers" if stored.startswith("F8") else f"numbers of type {stored}"
    raise CheckpointError(
        f"{path} stores {name} in {what}, which are not supported; use its bfloat16 form, or convert it"
    )
