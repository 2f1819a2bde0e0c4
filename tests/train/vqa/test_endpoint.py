"""The settings of an endpoint, and its file of kept replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from train.vqa.endpoint import EndpointSettings
from train.vqa.replies import Reply, ReplyCache
from wafervlm.errors import ConfigError, UsageError


def test_the_cache_survives_a_line_that_was_cut(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "cache")
    cache.put("a", Reply("one", "stop", 3, 4))
    with (tmp_path / "cache").open("a") as file:
        file.write('{"key": "b", "rep')
    found = ReplyCache(tmp_path / "cache").get("a")
    assert found == Reply("one", "stop", 3, 4, cached=True)
    (tmp_path / "cache").write_text("no cache\nat all\n")
    with pytest.raises(ConfigError, match="line 1 of .* is no kept reply"):
        ReplyCache(tmp_path / "cache")


def test_a_reply_after_one_that_was_cut_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    cache = ReplyCache(path)
    cache.put("a", Reply("one", "stop", 3, 4))
    whole = path.read_bytes()
    cache.put("b", Reply("zwölf", "stop", 3, 4))
    line = path.read_bytes()[len(whole) :]
    for left in (b"{", line[:20], line[: line.index("ö".encode()) + 1], line[:-2], b"\0" * 30):
        path.write_bytes(whole + left)
        ReplyCache(path).put("c", Reply("three", "length"))
        again = ReplyCache(path)
        assert len(again) == 2 and again.get("a") == Reply("one", "stop", 3, 4, cached=True)
        assert again.get("c") == Reply("three", "length", cached=True)
    # Cut before its end of line alone, it is whole.
    path.write_bytes(whole + line[:-1])
    ReplyCache(path).put("c", Reply("three", "length"))
    assert len(ReplyCache(path)) == 3


@pytest.mark.parametrize("text", ["a note", '{"wafers": 3}', "[\n 1,\n 2\n]"])
def test_a_file_of_another_kind_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cache"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is no kept reply; give another file"):
        ReplyCache(path)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "values", [{"url": "localhost:8000"}, {"model": ""}, {"retries": -1}, {"timeout": 0}, {"workers": 0}]
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EndpointSettings(**{"url": "http://x/v1", "model": "m", **values})
