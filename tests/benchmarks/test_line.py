"""The whole line on the tiny model: every stage real, resumed after a kill, refused where it is stale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.line import drive, plan
from benchmarks.line_stages import STAGES
from benchmarks.recipe import read_recipe
from tests.benchmarks.conftest import Ran, stamps
from train.artefact import folder_digest, read_provenance
from wafervlm.bundle import open_bundle
from wafervlm.errors import DatasetError, UsageError
from wafervlm.loading import load
from wafervlm.verification import verify


def test_killed_at_work_it_goes_on_where_it_stopped(ran: Ran) -> None:
    """Kill -9 took it after merging; what stood then was not made again, and nothing half-made is left."""
    assert {"data", "zero-shot", "train", "merge"} <= set(ran.survived) < set(STAGES)
    found = stamps(ran.folder)
    assert list(found) == list(STAGES)
    assert {stage: found[stage] for stage in ran.survived} == ran.survived
    assert not list(ran.folder.glob(".*"))
    assert not list(ran.folder.glob("*.partial"))
    assert ran.outcome.page.is_file()


def test_every_stage_is_made_from_the_one_before(ran: Ran) -> None:
    digests = {stage: folder_digest(ran.folder / stage) for stage in STAGES}
    inputs = {stage: read_provenance(ran.folder / stage)["inputs"] for stage in STAGES}
    assert inputs["train"]["dataset"] == inputs["merge"]["dataset"] == digests["data"]
    assert inputs["merge"]["adapter"] == digests["train"]
    assert inputs["calibrate"]["checkpoint"] == digests["merge"]
    assert inputs["export"]["checkpoint"] == digests["calibrate"]
    bundle = open_bundle(ran.folder / "export").digest
    assert inputs["predict"]["bundle"] == inputs["benchmark"]["bundle"] == bundle
    assert inputs["benchmark"]["reference"] == digests["merge"]


def test_the_bundle_answers_as_the_predictions_say(ran: Ran) -> None:
    assert verify(ran.outcome.bundle, threads=1)["exact"]["max_abs_difference"] < 1e-3
    lines = (ran.folder / "predict" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    with load(ran.outcome.bundle, threads=1) as model:
        answer = model.predict(ran.outcome.example)
    assert answer.label == first["label"]
    assert answer.scores == pytest.approx(first["scores"])
    assert len(lines) == 27
    assert (ran.folder / "predict" / f"{first['truth']}.png").is_file()


def test_a_second_run_makes_nothing_anew(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    before = stamps(ran.folder)
    again = drive(ran.recipe)
    assert stamps(ran.folder) == before
    told = capsys.readouterr().err
    assert told.count("complete already") == len(STAGES)
    assert "[8/8] benchmark" in told
    assert again.report == ran.outcome.report


def test_the_plan_says_what_there_is(ran: Ran) -> None:
    found = plan(ran.recipe)
    assert {stage["state"] for stage in found.stages} == {"there"}
    weights = (ran.folder / "merge" / "model.safetensors").stat().st_size
    assert found.memory["weights"] == pytest.approx(weights, rel=0.02)
    assert found.fits and found.devices == 1 and not found.missing
    states = [stage["state"] for stage in plan(ran.recipe, "predict").stages]
    assert states == ["there"] * 6 + ["to do"] * 2
    assert (ran.folder / "predict").is_dir()
    with pytest.raises(UsageError, match="no stage 'bake'"):
        plan(ran.recipe, "bake")


def test_a_stage_made_otherwise_is_not_used(ran: Ran, recipe_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    text = recipe_file.read_text(encoding="utf-8")
    other.write_text(text.replace("max_steps = 2", "max_steps = 3"), encoding="utf-8")
    before = stamps(ran.folder)
    with pytest.raises(UsageError, match="stage train.*--redo train"):
        drive(read_recipe(other))
    assert stamps(ran.folder) == before


def test_without_real_maps_it_stops_or_says_so_loudly(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "real.toml"
    text = recipe_file.read_text(encoding="utf-8").replace('"synthetic"', f'"{tmp_path}/LSWMD.pkl"')
    path.write_text(text, encoding="utf-8")
    (lack,) = plan(read_recipe(path)).missing
    assert "WAFERVLM_DATA" in lack
    with pytest.raises(DatasetError, match="WAFERVLM_DATA"):
        drive(read_recipe(path))
    path.write_text(text.replace("size = 64", "size = 64\nsynthetic = 5"), encoding="utf-8")
    assert "synthetic maps" in plan(read_recipe(path)).stages[0]["does"]
    assert "SYNTHETIC" in capsys.readouterr().err
