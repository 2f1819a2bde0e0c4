"""Files and folders that stand whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from wafervlm import files
from wafervlm.files import flush_tree, replace_folder, write_whole


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
