"""Artefact folders stand whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from train.artefact import Provenance, folder_digest, is_complete, read_provenance, write_provenance, writing
from wafervlm.errors import ManifestError, ResourceError, UsageError


def test_folder_appears_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "artefact"
    with writing(out) as folder:
        (folder / "a.txt").write_text("one")
        assert not out.exists()
    assert (out / "a.txt").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]


def test_what_a_library_keeps_to_itself_is_opened_as_the_umask_says(tmp_path: Path) -> None:
    with writing(tmp_path / "artefact") as folder:
        save_file({"a": torch.ones(2)}, folder / "a.safetensors")
        (folder / "a.safetensors").chmod(0o600)
        (folder / "b.txt").touch()
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "artefact").iterdir()}
    assert len(modes) == 1 and modes != {0o600}


def test_a_limit_on_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"ulimit -f"), writing(tmp_path / "artefact"):
        raise OSError(errno.EFBIG, "File too large")


def test_error_leaves_nothing_and_keeps_what_stood_there(tmp_path: Path) -> None:
    out = tmp_path / "artefact"
    with writing(out) as folder:
        (folder / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="stop"), writing(out, overwrite=True) as folder:
        (folder / "a.txt").write_text("new")
        raise RuntimeError("stop")
    assert (out / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["artefact"]


def test_existing_folder_is_refused_unless_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "artefact"
    out.mkdir()
    with pytest.raises(UsageError, match="exists already"), writing(out):
        pass
    with writing(out, overwrite=True) as folder:
        (folder / "b.txt").write_text("two")
    assert (out / "b.txt").exists()


def test_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="disk is full"), writing(tmp_path / "artefact"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_for_real(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(ResourceError), writing(tmp_path / "artefact"), Path("/dev/full").open("wb") as full:
        full.write(b"x")
        full.flush()
    assert not list(tmp_path.iterdir())


def test_keyboard_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "artefact") as folder:
        (folder / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_swept_and_what_another_writes_is_not(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".artefact.4194303.writing", tmp_path / f".artefact.{os.getppid()}.writing"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "half").write_text("x")
    with writing(tmp_path / "artefact"):
        pass
    assert not dead.exists()
    assert alive.exists()


def test_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = folder_digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    second = folder_digest(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, second, folder_digest(tmp_path / "a")}) == 3


def test_complete_only_for_the_same_inputs_and_settings(tmp_path: Path) -> None:
    made = Provenance("train", {"data": "ab"}, {"rank": 8, "zones": (1, 2)}, seed=3, parity={"x": 1.0})
    with writing(tmp_path / "out") as folder:
        write_provenance(folder, made)
    assert is_complete(tmp_path / "out", made)
    assert is_complete(
        tmp_path / "out", Provenance("train", {"data": "ab"}, {"rank": 8, "zones": (1, 2)}, seed=3)
    )
    assert not is_complete(
        tmp_path / "out", Provenance("train", {"data": "cd"}, {"rank": 8, "zones": (1, 2)}, seed=3)
    )
    assert not is_complete(tmp_path / "elsewhere", made)
    assert read_provenance(tmp_path / "out")["versions"]["python"].startswith("3.")


def test_unreadable_provenance_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(ManifestError, match="provenance"):
        read_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text(json.dumps([1]))
    with pytest.raises(ManifestError, match="one JSON object"):
        read_provenance(tmp_path)
