"""Any settings class, read from a TOML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from train.settings_file import field_help, leaves, read_table, require, settings_of
from wafervlm.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """A table."""

    size: int = 3
    """How large
    it is."""
    share: float | None = None
    """May be left out."""

    def __post_init__(self) -> None:
        require(self.size > 0, "part.size", self.size, "above 0")


@dataclass(frozen=True)
class Whole:
    """Two levels."""

    name: str = ""
    kind: Literal["round", "square"] = "round"
    """What it looks like."""
    part: Part = field(default_factory=Part)


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_become_nested_settings_and_overrides_win(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "a"\n[part]\nsize = 4\nshare = 1\n')
    assert settings_of(Whole, path) == Whole("a", "round", Part(4, 1.0))
    changed = settings_of(Whole, path, ["part.size=7", "kind=square"], {"part.size": 9})
    assert changed == Whole("a", "square", Part(9, 1.0))
    assert read_table(path) == {"name": "a", "part": {"size": 4, "share": 1}}


def test_every_leaf_is_listed_with_default_and_help() -> None:
    found = {key: (default, text) for key, default, text in leaves(Whole)}
    assert list(found) == ["name", "kind", "part.size", "part.share"]
    assert found["part.size"] == (3, "How large it is.") and found["name"] == ("", "")
    assert field_help(Part) == {"size": "How large it is.", "share": "May be left out."}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[part]\nsice = 1", r"unknown key 'part.sice' in .*settings.toml; did you mean 'part.size'\?"),
        ('kind = "rond"', r"one of round, square; did you mean 'round'\?"),
        ("[part]\nsize = 0", "part.size is 0; it must be above 0"),
        ("[part]\nsize = true", "part.size is True; it must be a whole number"),
        ("[part]\nshare = inf", "a finite number"),
        ("[part", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(Whole, written(tmp_path, text))
