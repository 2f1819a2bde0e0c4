"""The command that is shown beside a figure makes what the figure was taken from."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from benchmarks.cookbook.artefacts import Artefact, choose, places_of
from benchmarks.cookbook.lines import Places, command_of
from benchmarks.cookbook.settings_lines import reinforcing, training
from tests.benchmarks.cookbook.conftest import Runs
from tests.conftest import ROOT
from train.artefact import PROVENANCE
from train.config import flat_dict, read_settings
from train.rl.settings import flat_settings, read_rl_settings
from wafervlm.cli import main

STAGES = ("data", "train", "merge", "calibrate", "export", "benchmark", "vqa", "clean", "rl", "words")


@pytest.fixture(scope="module")
def made(runs: Runs) -> tuple[dict[str, Artefact], Places]:
    chosen = choose(runs.line, {**runs.named, "base": (runs.base,)})
    every = [one for group in chosen.values() for one in group]
    places = Places(places_of(every, ()))
    words = chosen["words"][0]
    places.add(words.inputs["real maps"], runs.line / "data")
    return {one.stage: one for one in every}, places


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_finds_its_own_output_complete(
    stage: str,
    made: tuple[dict[str, Artefact], Places],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    artefact, places = made[0][stage], made[1]
    before = (artefact.path / PROVENANCE).stat().st_mtime_ns
    monkeypatch.chdir(ROOT)
    line = command_of(artefact, places)
    assert line is not None
    program, *words = shlex.split(line)
    assert program == "wafervlm"
    # Threads are no part of what is made; the line took one.
    assert main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "complete" in said.err + said.out or stage in ("merge", "calibrate")
    assert (artefact.path / PROVENANCE).stat().st_mtime_ns == before


def test_what_only_a_line_makes_names_the_recipe(made: tuple[dict[str, Artefact], Places]) -> None:
    assert command_of(made[0]["predict"], made[1]) == "wafervlm run tiny.toml"
    assert command_of(made[0]["zero-shot"], made[1]) == "wafervlm run tiny.toml"


def test_what_is_not_at_hand_is_named_in_capitals(made: tuple[dict[str, Artefact], Places]) -> None:
    line = command_of(made[0]["merge"], Places({}))
    assert line is not None
    assert " -b BASE -a ADAPTER -d DATASET " in line


def test_settings_are_those_of_the_nearest_file_with_the_rest_set() -> None:
    for file in ("train/sft.toml", "train/nano/sft.toml"):
        wanted = flat_dict(read_settings(ROOT / file)[0])
        assert training(wanted) == ["wafervlm", "train", file]
        changed = {**wanted, "train.batch": 7, "model.device": "cpu", "processes": 2}
        words = training(changed)
        assert words[:4] == ["accelerate", "launch", "--num_processes", 2]
        overrides = [str(word) for word in words[words.index(file) + 1 :] if word != "--set"]
        read = flat_dict(read_settings(ROOT / file, overrides)[0])
        assert read == {key: value for key, value in changed.items() if key != "processes"}
    for file in ("train/nano/rl.toml", "train/recipes/rl/qwen3_vl_4b_48gb.toml"):
        wanted = flat_settings(read_rl_settings(Path(ROOT, file)))
        assert reinforcing(wanted) == ["wafervlm", "train", "--config", file]
        assert reinforcing({**wanted, "rl.beta": 0.5})[-2:] == ["--set", "rl.beta=0.5"]
