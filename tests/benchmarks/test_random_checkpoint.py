"""Random checkpoints of a real shape: complete, loadable, finite, and a function of their seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.random_checkpoint import RandomSettings, cut, main, plan, write_random
from calibrate.pack import load_quantized
from tests.conftest import ROOT
from train.inventory import take_inventory
from train.loading import checkpoint_family, load_checkpoint, read_config
from train.scorer import label_log_probs
from train.shards import Shards
from train.synthetic import wafers
from wafervlm.errors import ConfigError, UsageError
from wafervlm.render import render
from wafervlm.task import Task

MODELS = ROOT.parent / "shared" / "models"
REAL = {"qwen3-vl-4b": (4.44e9, 3.5e9), "qwen2.5-vl-7b": (8.29e9, 6.93e9)}


@pytest.mark.parametrize("group", [None, 32])
def test_it_loads_and_answers_with_finite_numbers(
    family_checkpoint: Path, family_task: Task, tmp_path: Path, group: int | None
) -> None:
    out = tmp_path / "random"
    write_random(family_checkpoint, out, RandomSettings(group=group, shard_bytes=60_000))
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    loaded = load_quantized(out) if group else load_checkpoint(out)
    assert take_inventory(out).bits == (4 if group else None)
    images = [render(wafer, family_task.render) for wafer in wafers(["Loc", "Center"], seed=1)]
    scores = label_log_probs(loaded, family_task, images)
    assert np.isfinite(scores).all() and np.abs(scores[0] - scores[1]).max() > 1e-4
    model = loaded.model
    tied = read_config(out).get("tie_word_embeddings", False)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) is bool(tied)
    std = model.get_submodule("model.language_model.layers.1.mlp.up_proj").weight.detach().std()
    assert 0.017 < float(std) < 0.023


def test_its_names_are_those_that_transformers_writes(family_checkpoint: Path, tmp_path: Path) -> None:
    write_random(family_checkpoint, tmp_path / "random", RandomSettings())
    mine, theirs = Shards(tmp_path / "random").slots, Shards(family_checkpoint).slots
    assert {name: slot.shape for name, slot in mine.items()} == {n: s.shape for n, s in theirs.items()}


def test_it_is_a_function_of_its_seed(family_checkpoint: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random(family_checkpoint, tmp_path / name, RandomSettings(seed=seed, group=32))
    data = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert data[0] == data[1] != data[2]


@pytest.mark.parametrize("name", REAL)
def test_real_shapes_have_their_published_size(name: str) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip(f"no configuration at {MODELS / name}")
    config, family = read_config(MODELS / name), checkpoint_family(MODELS / name)
    full, _ = plan(family, cut(config, None), None)
    packed, layers = plan(family, cut(config, None), 128)
    parameters, stored = REAL[name]
    assert sum(slot.nbytes for slot in full.values()) / 2 == pytest.approx(parameters, rel=0.01)
    assert sum(slot.nbytes for slot in packed.values()) == pytest.approx(stored, rel=0.01)
    assert len(layers) == 7 * (36 if "4b" in name else 28)
    assert ("lm_head.weight" in full) is (name == "qwen2.5-vl-7b")


@pytest.mark.parametrize("name", REAL)
def test_a_cut_shape_keeps_what_refers_to_depths_inside(name: str) -> None:
    if not (MODELS / name).is_dir():
        pytest.skip(f"no configuration at {MODELS / name}")
    config, family = read_config(MODELS / name), checkpoint_family(MODELS / name)
    for layers in (2, 4, 9):
        values = cut(config, layers)
        slots, _ = plan(family, values, None)
        assert len({n.split(".layers.")[1].split(".")[0] for n in slots if ".layers." in n}) == layers
        places = values["vision_config"].get("deepstack_visual_indexes") or values["vision_config"].get(
            "fullatt_block_indexes"
        )
        assert places and max(places) < layers
        assert len(places) < layers  # windowed blocks, or those without DeepStack, stay beside them


def test_the_command_writes_one_with_fewer_layers(family_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [str(family_checkpoint), "-o", str(out), "--gptq", "--group", "32", "--layers", "2", "--json"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and str(out) in done.stdout
    assert take_inventory(out).layers == 2
    assert "Example:" in CliRunner().invoke(main, ["--help"]).stdout


def test_what_cannot_be_is_refused(family_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        RandomSettings(layers=1)
    with pytest.raises(ConfigError, match="do not divide into groups of 48"):
        write_random(family_checkpoint, tmp_path / "out", RandomSettings(group=48))
    assert not (tmp_path / "out").exists()
