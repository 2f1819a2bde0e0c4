"""Recipes: what is understood, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recipe import effective, expand, read_recipe
from tests.conftest import ROOT
from wafervlm.errors import ConfigError

HEAD = '[line]\nname = "one"\nbase = "b"\n[data]\nsource = "synthetic"\n'


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_demo_is_a_recipe() -> None:
    demo = read_recipe(ROOT / "train" / "nano" / "demo.toml")
    assert demo.folder == Path("runs/demo")
    assert 0 < demo.data.train_per_class <= 100
    assert demo.data.synthetic
    assert expand(demo.benchmark.maps).name == "val.npz"
    assert demo.calibrate.scheme.bits == 4
    first = (ROOT / "train" / "nano" / "demo.toml").read_text(encoding="utf-8").split("\n\n")[0]
    assert "wafervlm run train/nano/demo.toml" in first


def test_settings_of_every_stage_are_taken(tmp_path: Path) -> None:
    text = HEAD + '[lora]\nrank = 3\n[calibrate.scheme]\ngroup = 32\n[merge]\ndtype = "float32"\n'
    found = effective(read_recipe(recipe(tmp_path, text)))
    assert found["lora"]["rank"] == 3
    assert found["calibrate"]["scheme"]["group"] == 32
    assert found["merge"]["dtype"] == "float32"
    assert found["line"]["name"] == "one"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "[lora]\nranks = 3\n", r"unknown key 'lora.ranks'.*did you mean 'lora.rank'"),
        (HEAD + '[model]\nbase = "x"\n', "line.base and data.source say it"),
        (HEAD.replace('"one"', '"../one"'), "plain folder name"),
        (HEAD.replace('base = "b"', ""), "line.base is not set"),
        (HEAD.replace('source = "synthetic"', ""), "data.source is not set"),
        (HEAD + "size = -1\n", "data.size is -1"),
        (HEAD + '[train]\nbatch = "many"\n', "must be a whole number"),
        (HEAD + "[calibrate.scheme]\nbits = 1\n", "bits is 1"),
        ("[line\n", "not valid TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_recipe(recipe(tmp_path, text))


def test_variables_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAFERVLM_DATA", "/maps")
    assert expand("$WAFERVLM_DATA/a.npz") == expand("${WAFERVLM_DATA}/a.npz") == Path("/maps/a.npz")
    monkeypatch.delenv("WAFERVLM_DATA")
    assert expand("$WAFERVLM_DATA/a.npz") == ROOT.parent / "shared" / "data" / "a.npz"
    with pytest.raises(ConfigError, match="NO_SUCH_FOLDER, which is not set"):
        expand("$NO_SUCH_FOLDER/a")
