"""Files and folders that stand whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wafervlm import files
from wafervlm.files import flush_tree, open_to_others, replace_folder, write_whole


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (b"old", b"new and longer"):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    for text in ("first", "second"):
        (work / "deep").mkdir(parents=True)
        (work / "deep" / "a").write_text(text)
        flush_tree(work)
        replace_folder(work, out)
        assert (out / "deep" / "a").read_text() == text
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_are_as_open_as_the_umask_leaves_them(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "work" / "below").mkdir(parents=True)
        for name in ("a", "below/b"):
            (tmp_path / "work" / name).touch(mode=0o600)
        (tmp_path / "work" / "usual").touch()
        (tmp_path / "work" / "link").symlink_to("nowhere")
        open_to_others(tmp_path / "work")
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "work").rglob("*") if p.is_file()}
    assert modes == {0o666 & ~mask}
