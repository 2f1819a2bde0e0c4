"""What a stage says beforehand: counted from shapes, scaled by this machine's speed, printed by --dry-run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibrate.commands import calibrate
from calibrate.estimate import estimate as calibrate_cost
from calibrate.gptq import Scheme
from calibrate.stage import CalibrateSettings
from export.commands import export
from tests.train.test_merge_streamed import adapt
from train.commands import merge
from train.cost_options import show_cost
from train.costs import Cost, Speed, Work, free_disk, measure_speed, pass_products, prompt_tokens
from train.encoding import encode
from train.inventory import take_inventory
from train.loading import load_checkpoint
from train.merge import MergeSettings
from train.merge_estimate import estimate as merge_cost
from train.tree import label_tree
from wafervlm.task import Task


def test_this_machine_is_measured() -> None:
    speed = measure_speed()
    assert 1e8 < speed.products < 1e14
    assert 1e8 < speed.narrow < 1e15
    assert 1e6 < speed.elements < 1e12
    assert 1e6 < speed.digests < 1e12


def test_work_is_scaled_by_speed(tmp_path: Path) -> None:
    speed = Speed(products=1e9, narrow=2e9, elements=1e8, digests=1e7)
    work = Work(products=2e9, narrow=2e9, elements=3e8, digests=4e7, fixed=4)
    assert work.seconds(speed) == pytest.approx(2 + 1 + 3 + 4 + 4)
    figures = Cost(3e9, 4e9, {"a": work, "b": work}).figures(tmp_path / "not" / "there", speed)
    assert figures["memory_gb"] == 3 and figures["disk_gb"] == 4
    assert figures["seconds"] == 28 and figures["seconds_of"] == {"a": 14.0, "b": 14.0}
    assert free_disk(tmp_path / "not" / "there") > 0


def test_tokens_are_those_of_the_pass(family_checkpoint: Path, family_task: Task) -> None:
    import numpy as np

    loaded, inventory = load_checkpoint(family_checkpoint), take_inventory(family_checkpoint)
    blank = np.zeros((family_task.render.height, family_task.render.width, 3), np.uint8)
    prompt = encode(loaded, family_task, [blank])["input_ids"].shape[1]
    tree = label_tree(loaded.tokenizer, family_task)
    tokens = prompt + len(tree.prefix_ids) + len(tree.fed)
    assert prompt_tokens(inventory, family_task) == tokens
    assert pass_products(inventory, family_task) > 2 * tokens * inventory.text


def test_a_merge_is_estimated_by_its_gates(
    family_checkpoint: Path, family_dataset: Path, tmp_path: Path
) -> None:
    one = merge_cost(family_checkpoint, tmp_path, family_dataset, MergeSettings(maps=3))
    more = merge_cost(family_checkpoint, tmp_path, family_dataset, MergeSettings(maps=6, dtype="float32"))
    scored = "score merged"
    assert more.parts[scored].products == pytest.approx(2 * one.parts[scored].products)
    assert more.disk == 2 * one.disk == 4 * take_inventory(family_checkpoint).parameters
    assert more.memory == one.memory
    streamed = [
        merge_cost(family_checkpoint, tmp_path, family_dataset, MergeSettings(stream="always", maps=maps))
        for maps in (3, 6)
    ]
    assert streamed[0].memory < streamed[1].memory


def test_a_calibration_is_estimated_by_its_maps(family_checkpoint: Path, family_dataset: Path) -> None:
    settings = CalibrateSettings(Scheme(group=32), maps=9, check_maps=9)
    cost = calibrate_cost(family_checkpoint, family_dataset, settings)
    same = CalibrateSettings(Scheme(group=32), maps=9, check_maps=9, weigh="same", offload="disk")
    offloaded = calibrate_cost(family_checkpoint, family_dataset, same)
    assert cost.parts["weigh tokens"].products > offloaded.parts["weigh tokens"].products == 0
    assert offloaded.memory < cost.memory
    more = CalibrateSettings(Scheme(group=32), maps=9, check_maps=18)
    scored = "score quantized"
    assert calibrate_cost(family_checkpoint, family_dataset, more).parts[scored].products == pytest.approx(
        2 * cost.parts[scored].products
    )


def test_a_dry_run_says_what_it_takes_and_writes_nothing(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.costs.PROBE_SECONDS", 0.02)
    adapter = adapt(tiny_checkpoint, tmp_path / "adapter")
    out, source, data = tmp_path / "out", str(tiny_checkpoint), str(synthetic_dataset)
    for command, arguments in (
        (export, [source, "-d", data]),
        (merge, ["-b", source, "-a", str(adapter), "-d", data]),
        (calibrate, [source, "-d", data, "--group", "32"]),
    ):
        done = CliRunner().invoke(
            command, [*arguments, "-o", str(out), "--dry-run", "--json"], catch_exceptions=False
        )
        figures = json.loads(done.stdout)
        assert figures["seconds"] == pytest.approx(sum(figures["seconds_of"].values()), abs=0.5)
        assert 0.3 < figures["memory_gb"] < 3 and figures["disk_free_gb"] > 0
        assert not out.exists()


def test_what_will_not_fit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train.costs.PROBE_SECONDS", 0.02)
    show_cost(Cost(memory=1e15, disk=1e3), tmp_path, as_json=False)
    assert "1000000.0 GB of memory are needed" in capsys.readouterr().err
    show_cost(Cost(memory=1e3, disk=1e15), tmp_path, as_json=False)
    assert "1000000.0 GB of disk are needed" in capsys.readouterr().err
