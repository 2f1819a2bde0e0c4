"""Tensors one at a time: written as Hugging Face cuts files, read by name or by rows, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.shards import INDEX, SINGLE, Shards, ShardWriter, Slot, plan_shards
from wafervlm.errors import CheckpointError

TENSORS = {
    "a": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    "b": torch.arange(7, dtype=torch.uint8),
    "c": torch.randn(5, 2, generator=torch.Generator().manual_seed(0)),
    "d": torch.tensor([[1, -2], [3, 4]], dtype=torch.int32),
}
SLOTS = [Slot(name, part.dtype, tuple(part.shape)) for name, part in TENSORS.items()]


def write(folder: Path, limit: int = 10**9) -> None:
    with ShardWriter(folder, SLOTS, limit) as writer:
        for name in reversed(TENSORS):
            writer.write(name, TENSORS[name].split(1))


@pytest.mark.parametrize("limit", [10**9, 40, 1])
def test_what_is_written_is_what_safetensors_reads(tmp_path: Path, limit: int) -> None:
    write(tmp_path, limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    found = {name: part for file in files for name, part in load_file(file).items()}
    assert found.keys() == TENSORS.keys()
    for name, part in TENSORS.items():
        assert torch.equal(found[name], part) and found[name].dtype == part.dtype
    if limit == 10**9:
        assert [file.name for file in files] == [SINGLE] and not (tmp_path / INDEX).exists()
    else:
        index = json.loads((tmp_path / INDEX).read_text())
        assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
        assert index["metadata"]["total_size"] == sum(slot.nbytes for slot in SLOTS)
        assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"


def test_shards_are_cut_where_they_would_grow_too_large() -> None:
    cut = plan_shards(SLOTS, 40)
    assert [[slot.name for slot in shard] for shard in cut] == [["a", "b"], ["c"], ["d"]]


def test_what_was_announced_must_come(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a was announced and not written"), ShardWriter(tmp_path, SLOTS):
        pass
    wrong = pytest.raises(ValueError, match="announced with 24 bytes and has 16")
    with wrong, ShardWriter(tmp_path, SLOTS) as writer:
        writer.write("a", TENSORS["a"][:2])
    wrong = pytest.raises(ValueError, match="announced as torch.bfloat16 and is torch.float32")
    with wrong, ShardWriter(tmp_path, SLOTS) as writer:
        writer.write("a", TENSORS["a"].float())


def test_tensors_and_rows_are_read_by_name(tmp_path: Path) -> None:
    write(tmp_path, 40)
    shards = Shards(tmp_path)
    assert shards.slots == {slot.name: slot for slot in SLOTS}
    assert torch.equal(shards.tensor("c"), TENSORS["c"])
    assert torch.equal(shards.rows("a", 1, 3), TENSORS["a"][1:3])
    assert "a" in shards and "z" not in shards
    with pytest.raises(CheckpointError, match="has no tensor 'z'"):
        shards.tensor("z")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, 40)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the file model-00002-of-00003\.safetensors"):
        Shards(tmp_path)


def test_a_shard_without_a_tensor_of_the_index_is_told(tmp_path: Path) -> None:
    write(tmp_path, 40)
    save_file({"x": TENSORS["c"]}, tmp_path / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="lacks c, which model.safetensors.index.json says is there"):
        Shards(tmp_path)


def test_a_shard_that_is_cut_off_is_told(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / SINGLE
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="cannot read"):
        Shards(tmp_path)


def test_float8_is_refused_with_what_to_do(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match="stores w in float8 numbers, .* use its bfloat16 form"):
        Shards(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Shards(tmp_path)
