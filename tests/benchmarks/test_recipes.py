"""The recipes for real weights: each is one, fits the GPU that it names, and says what is missing here."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from huggingface_hub.errors import LocalEntryNotFoundError

import train.sft
from benchmarks.launch import launch, toml_lines
from benchmarks.line import plan
from benchmarks.memory import GIB, empty_model
from benchmarks.recipe import find_base, is_sharded, processes_of, read_recipe
from tests.conftest import ROOT
from tests.train.test_sft import settings_for
from train.config import read_settings, to_dict
from train.loading import checkpoint_family
from train.sft import fine_tune
from wafervlm import cli
from wafervlm.errors import ConfigError, GateError, SetupError, UsageError

RECIPES = sorted((ROOT / "train" / "recipes").glob("*.toml"))
NAMES = [path.stem for path in RECIPES]
FAMILIES = {"qwen3_vl_4b": "qwen3-vl-4b", "cosmos_reason1_7b": "qwen2.5-vl-7b"}


def configuration(name: str) -> Path:
    """The real configuration and tokenizer, without weights, of the model that a recipe is for."""
    folder = (
        ROOT.parent / "shared" / "models" / next(f for key, f in FAMILIES.items() if name.startswith(key))
    )
    if not (folder / "config.json").is_file():
        pytest.skip(f"no real configuration at {folder}")
    return folder


def with_base(recipe: Path, base: Path, out: Path) -> Path:
    """A copy of ``recipe`` that starts from the folder ``base``."""
    text = re.sub(r"(?m)^base = .*$", f'base = "{base}"', recipe.read_text(encoding="utf-8"))
    text = re.sub(r"\[line\]", f'[line]\noutput = "{out / "runs"}"', text)
    path = out / recipe.name
    path.write_text(text, encoding="utf-8")
    return path


def test_there_is_one_for_each_model_and_machine() -> None:
    assert set(NAMES) == {f"{m}_{g}" for m in FAMILIES for g in ("24gb", "48gb", "4gpu_fsdp")}


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_each_is_a_recipe_and_its_head_names_it(path: Path) -> None:
    recipe = read_recipe(path)
    head = path.read_text(encoding="utf-8").split("\n[line]")[0]
    assert recipe.line.name == path.stem
    assert f"wafervlm run train/recipes/{path.name} --dry-run" in head
    assert f"hf download {recipe.line.base}" in head
    assert "28 of 60" in head
    processes = processes_of(ROOT / recipe.line.accelerate) if recipe.line.accelerate else 1
    assert processes == (4 if path.stem.endswith("fsdp") else 1)
    assert recipe.train.batch * recipe.train.accumulate * processes == 32
    step = 32 if path.stem.startswith("qwen3") else 28
    assert recipe.data.size % step == 0


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_each_fits_and_says_so_in_its_head(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures in the head are those that --dry-run comes to with the real configuration."""
    monkeypatch.chdir(ROOT)
    found = plan(read_recipe(with_base(path, configuration(path.stem), tmp_path)))
    head = path.read_text(encoding="utf-8").split("\n[line]")[0]
    for name, value in found.memory.items():
        assert re.search(rf"#   {name} +{value / GIB:.2f} ", head), name
    total = rf"#   together +{sum(found.memory.values()) / GIB:.1f}   of {found.budget / GIB:.1f}"
    assert re.search(total, head)
    assert found.fits and sum(found.memory.values()) < 0.9 * found.budget
    assert bool(found.loading) is path.stem.endswith("fsdp")
    if not torch.cuda.is_available():
        assert any("sees 0 here" in lack for lack in found.missing)
    assert not (tmp_path / "runs").exists()


def test_dry_run_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (path,) = (path for path in RECIPES if path.stem == "cosmos_reason1_7b_4gpu_fsdp")
    copy = tmp_path / path.name
    copy.write_text(path.read_text(encoding="utf-8").replace("nvidia/Cosmos", "nvidia/No-Such-Cosmos"))
    assert cli.main(["run", str(copy), "--dry-run", "--json"]) == SetupError.exit_code
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [stage["state"] for stage in found["stages"]] == ["to do"] * 8
    assert "in 4 processes" in found["stages"][2]["does"]
    assert found["memory"] == {}
    assert "next:" not in said.err
    # Of the settings those that the recipe sets, once.
    assert "train.batch" in said.err and "train.tensorboard" not in said.err
    assert any("hf download nvidia/No-Such-Cosmos-Reason1-7B" in lack for lack in found["missing"])
    assert cli.main(["run", str(copy)]) == UsageError.exit_code
    assert "nothing is downloaded unasked" in capsys.readouterr().err
    text = with_base(path, configuration(path.stem), tmp_path).read_text(encoding="utf-8")
    copy.write_text(text.replace("gpu_gib = 22.5", "gpu_gib = 8"), encoding="utf-8")
    assert cli.main(["run", str(copy), "--dry-run"]) == SetupError.exit_code
    said = capsys.readouterr()
    assert "of 8.0 GiB, after 16.9 while it loads: TOO MUCH" in said.out
    assert "has a configuration and no weights; put" in said.out
    assert (said.out + said.err).count("the adapter into the base") == 1


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_memory_is_known_before_anything_is_downloaded(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By published sizes: exact but for the length of the conversation, which activations follow."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("benchmarks.recipe.snapshot_download", not_there)
    found = plan(read_recipe(path))
    head = path.read_text(encoding="utf-8").split("\n[line]")[0]
    assert found.published and found.memory
    for name, value in found.memory.items():
        (told,) = re.findall(rf"#   {name} +([0-9.]+) ", head)
        assert value / GIB == pytest.approx(float(told), rel=0.15 if name == "activations" else 0, abs=0.006)
    assert any("hf download" in lack for lack in found.missing)


def not_there(name: str, **_: object) -> str:
    raise LocalEntryNotFoundError(name)


def test_a_dry_run_that_does_not_fit_is_a_gate_not_passed(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "r.toml"
    head = f'[line]\nname = "r"\noutput = "{tmp_path}"\nbase = "{tiny_checkpoint}"\n'
    path.write_text(f'{head}[model]\ndevice = "cpu"\n[data]\nsource = "synthetic"\n', encoding="utf-8")
    assert cli.main(["run", str(path), "--dry-run"]) == 0
    assert f"next: wafervlm run {path}" in capsys.readouterr().err
    monkeypatch.setattr("benchmarks.line._budget", lambda recipe, device: 1)
    assert cli.main(["run", str(path), "--dry-run"]) == GateError.exit_code
    said = capsys.readouterr()
    assert "TOO MUCH" in said.out and "next:" not in said.err


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_fsdp_wraps_layers_that_the_model_has(family: str) -> None:
    path = ROOT / "train" / "recipes" / f"fsdp_{family}.yaml"
    config = load_config_from_file(str(path))
    assert is_sharded(path) and processes_of(path) == 4 and not config.use_cpu
    base = configuration("qwen3_vl_4b" if family == "qwen3_vl" else "cosmos_reason1_7b")
    model = empty_model(base, checkpoint_family(base))
    wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config.fsdp_config["fsdp_version"],
        auto_wrap_policy=config.fsdp_config["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=wrapped,
        reshard_after_forward=config.fsdp_config["fsdp_reshard_after_forward"],
    )
    plugin.set_auto_wrap_policy(model)  # raises for a class that the model does not have
    layers = [m for m in model.modules() if type(m).__name__ in wrapped]
    assert len(layers) == len(model.model.language_model.layers) + len(model.model.visual.blocks)


def test_a_base_is_found_as_a_folder_or_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert find_base("org/name") == Path("org/name")
    with pytest.raises(UsageError, match="get it with: hf download org/other-name-7"):
        find_base("org/other-name-7")
    with pytest.raises(UsageError, match="is not a folder; name the base"):
        find_base("/no/such/folder")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_processes: 1\nnum_machines: 1\n", "1 process"),
        ("num_processes: [", "not a configuration of accelerate"),
        ("nonsense: 3\n", "not a configuration of accelerate"),
    ],
)
def test_a_wrong_configuration_of_accelerate_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.yaml"
    head = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\n"
    path.write_text(head + text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        processes_of(path)
    with pytest.raises(ConfigError, match="not a configuration"):
        processes_of(tmp_path / "none.yaml")


def test_settings_reach_the_processes_as_they_are(
    tmp_path: Path, tiny_checkpoint: Path, synthetic_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate's launcher is stood in for by the train command in this process, with its own reading of the
    file; what was written is found again, and a failure is told with the command."""
    settings = settings_for(tmp_path / 'a "b" ü', tiny_checkpoint, synthetic_dataset, max_steps=1)
    assert tomllib.loads("\n".join(toml_lines(to_dict(settings)))) == to_dict(settings)
    ran: list[list[str]] = []

    def stand_in(command: list[str], **_: object) -> object:
        ran.append(command)
        with monkeypatch.context() as patch:
            if len(ran) == 1:
                return type("Done", (), {"returncode": 3})
            recorded = tuple(key for key in train.sft._FREE if key != "train.tensorboard")
            patch.setattr("train.sft._FREE", recorded)
            fine_tune(read_settings(Path(command[-1]))[0])
        record = Path(settings.output) / "provenance.json"
        changed = json.loads(record.read_text())
        changed["settings"]["processes"] = 2
        del changed["settings"]["train.tensorboard"]
        record.write_text(json.dumps(changed))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("benchmarks.launch.subprocess.run", stand_in)
    with pytest.raises(SetupError, match="2 training processes ended with exit code 3"):
        launch(settings, tmp_path / "accelerate.yaml", 2)
    found = launch(settings, tmp_path / "accelerate.yaml", 2)
    assert found.steps == 1 and not found.trained_now
    assert launch(settings, tmp_path / "accelerate.yaml", 2) == found and len(ran) == 2
    assert ran[0][:4] == [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    shutil.rmtree(settings.output)
