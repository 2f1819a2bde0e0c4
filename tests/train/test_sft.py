"""Fine-tuning a tiny model from dataset folder to adapter folder."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.wafervlm.toy import make_graph, make_head, write_bundle
from train.artefact import folder_digest
from train.assembly import assemble, figures, total_steps
from train.build import BuildConfig, build_dataset
from train.config import Settings, TrainSettings, settings_from, to_dict
from train.curves import read_log
from train.dataset import dataset_task, read_split
from train.loading import load_checkpoint
from train.samples import annotated_examples, at_most, held_out
from train.scorer import label_log_probs
from train.sft import Outcome, explained_memory, fine_tune, settled
from train.trainer import AdapterTrainer
from wafervlm.bundle import EMBEDDED
from wafervlm.errors import ConfigError, DatasetError, ResourceError, SetupError, UsageError
from wafervlm.render import render
from wafervlm.task import Task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_task: Task) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    build_dataset(BuildConfig(source=Path("synthetic"), train=6, test=1, tune=2, task=tiny_task), folder)
    return folder


def settings_for(
    out: Path, base: Path, dataset: Path, lora: dict[str, Any] | None = None, **train: Any
) -> Settings:
    table = {
        "output": str(out),
        "model": {"base": str(base), "device": "cpu"},
        "data": {"dataset": str(dataset)},
        "lora": lora or {"rank": 4},
        "train": {"batch": 9, "threads": 1, **train},
    }
    return settings_from(table)[0]


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, dataset: Path
) -> tuple[Settings, Outcome]:
    out = tmp_path_factory.mktemp("run") / "adapter"
    settings = settings_for(
        out,
        tiny_checkpoint,
        dataset,
        {"rank": 8, "vision": True, "tokens": True},
        max_steps=30,
        learning_rate=1e-2,
        evaluations=3,
        patience=0,
        save_steps=10,
    )
    return settings, fine_tune(settings)


def test_descriptions_leave_out_what_a_bundle_gets_wrong(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path
) -> None:
    table = {
        "output": str(tmp_path / "adapter"),
        "model": {"base": str(tiny_checkpoint), "device": "cpu"},
        "data": {"dataset": str(dataset), "words": 0.9, "doubts": str(EMBEDDED), "tune_maps": 4},
        "lora": {"rank": 4},
        "train": {"batch": 2, "threads": 1, "max_steps": 2, "evaluations": 1},
    }
    settings = settings_from(table)[0]
    assert fine_tune(settings).steps == 2
    record = json.loads((tmp_path / "adapter" / "provenance.json").read_text())
    assert record["inputs"]["doubts"] == folder_digest(EMBEDDED)
    mute = write_bundle(tmp_path / "mute", make_graph(head := make_head()), head)
    other = replace(settings, output=str(tmp_path / "o"), data=replace(settings.data, doubts=str(mute)))
    with pytest.raises(UsageError, match="words"):
        fine_tune(other)


def test_the_loss_falls_and_the_folder_holds_what_it_should(trained: tuple[Settings, Outcome]) -> None:
    settings, outcome = trained
    out = Path(settings.output)
    assert sorted(p.name for p in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "curves.png",
        "log.csv",
        "provenance.json",
        "settings.json",
        "task.json",
    ]
    log = read_log(out / "log.csv")
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[0] > 5 and losses[-1] < losses[0] - 0.5
    assert [row["step"] for row in log if "tune_accuracy" in row] == [10, 20, 30]
    assert (outcome.steps, outcome.samples, outcome.stopped) == (30, 270, "steps")
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not out.with_name("adapter.partial").exists()
    record = json.loads((out / "provenance.json").read_text())
    assert record["stage"] == "train" and set(record["inputs"]) == {"base", "dataset"}
    assert record["settings"]["lora.rank"] == 8 and record["settings"]["model.precision"] == "float32"
    assert record["parity"]["tune_accuracy"] == outcome.tune_accuracy


def test_the_written_adapter_is_the_best_one(trained: tuple[Settings, Outcome], dataset: Path) -> None:
    settings, outcome = trained
    task, samples = dataset_task(dataset), read_split(dataset, "tune")
    checkpoint = load_checkpoint(settings.model.base, adapter=settings.output)
    images = [render(sample.wafer, task.render) for sample in samples]
    truth = np.array([task.labels.index(sample.label) for sample in samples])
    found = figures(label_log_probs(checkpoint, task, images), truth)
    row = next(
        row
        for row in read_log(Path(settings.output) / "log.csv")
        if row["step"] == outcome.best_step and "tune_accuracy" in row
    )
    assert found["tune_accuracy"] == pytest.approx(outcome.tune_accuracy)
    assert found["tune_accuracy"] == pytest.approx(row["tune_accuracy"], abs=1e-5)
    assert found["tune_loss"] == pytest.approx(row["tune_loss"], abs=1e-4)


def test_a_complete_adapter_is_left_alone(trained: tuple[Settings, Outcome]) -> None:
    settings, outcome = trained
    before = (Path(settings.output) / "adapter_model.safetensors").stat().st_mtime_ns
    assert fine_tune(settings) == replace(outcome, trained_now=False)
    assert (Path(settings.output) / "adapter_model.safetensors").stat().st_mtime_ns == before
    other = replace(settings, train=replace(settings.train, seed=9))
    with pytest.raises(UsageError, match="exists already and was not made so"):
        fine_tune(other)


@pytest.mark.parametrize(
    ("vision", "parts"), [(False, {"language_model"}), (True, {"language_model", "visual"})]
)
def test_adapters_lie_where_they_should(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path, vision: bool, parts: set[str]
) -> None:
    settings = settings_for(
        tmp_path / "a",
        tiny_checkpoint,
        dataset,
        {"rank": 2, "alpha": 6, "dropout": 0.1, "vision": vision},
        max_steps=1,
    )
    fine_tune(settings)
    names = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {part for part in ("language_model", "visual") for name in names if f".{part}." in name} == parts
    assert any("merger" in name for name in names) is vision
    assert not any("lm_head" in name or "embed" in name for name in names)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6, 0.1)


def test_the_loss_is_the_parent_classs(tmp_path: Path, tiny_checkpoint: Path, dataset: Path) -> None:
    settings = settled(settings_for(tmp_path / "a", tiny_checkpoint, dataset))
    trainer, _ = assemble(settings, tmp_path / "a.partial", None)
    batch = trainer.data_collator([{"position": k} for k in range(9)])
    gradients = []
    for loss_of in (trainer.compute_loss, super(AdapterTrainer, trainer).compute_loss):
        loss = loss_of(trainer.model, dict(batch), num_items_in_batch=torch.tensor(50))
        loss.backward()
        names = [(n, p.grad.clone()) for n, p in trainer.model.named_parameters() if p.requires_grad]
        gradients.append({**dict(names), "loss": loss.detach()})
        trainer.model.zero_grad()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-6)


def test_embeddings_of_the_answers_can_be_trained(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path
) -> None:
    losses = []
    for tokens in (False, True):
        out = tmp_path / str(tokens)
        settings = settings_for(
            out, tiny_checkpoint, dataset, {"rank": 4, "tokens": tokens}, max_steps=12, learning_rate=1e-2
        )
        fine_tune(settings)
        losses.append([row["loss"] for row in read_log(out / "log.csv") if "loss" in row][-1])
        names = load_file(out / "adapter_model.safetensors")
        assert any("trainable_tokens" in name for name in names) is tokens
    assert losses[1] < losses[0] - 0.3
    task = dataset_task(dataset)
    images = [render(sample.wafer, task.render) for sample in read_split(dataset, "tune")]
    adapted = load_checkpoint(tiny_checkpoint, adapter=tmp_path / "True")
    before = label_log_probs(adapted, task, images)
    merged = replace(adapted, model=adapted.model.merge_and_unload())
    assert merged.model.lm_head.weight is merged.model.model.language_model.embed_tokens.weight
    np.testing.assert_allclose(label_log_probs(merged, task, images), before, atol=1e-4)


def test_recomputing_activations_changes_nothing(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path
) -> None:
    lora = {"rank": 2, "vision": True}
    for way in ("on", "off"):
        settings = settings_for(
            tmp_path / way, tiny_checkpoint, dataset, lora, max_steps=2, gradient_checkpointing=way
        )
        fine_tune(settings)
    on, off = (load_file(tmp_path / way / "adapter_model.safetensors") for way in ("on", "off"))
    for name in on:
        torch.testing.assert_close(on[name], off[name], rtol=0, atol=2e-4)


def test_bfloat16_comes_close_to_float32(tmp_path: Path, tiny_checkpoint: Path, dataset: Path) -> None:
    losses = []
    for precision in ("bfloat16", "float32"):
        settings = settings_for(tmp_path / precision, tiny_checkpoint, dataset, max_steps=2)
        fine_tune(replace(settings, model=replace(settings.model, precision=precision)))
        losses.append([row["loss"] for row in read_log(tmp_path / precision / "log.csv") if "loss" in row])
        names = load_file(tmp_path / precision / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in names.values()} == {torch.float32}
    assert losses[0] == pytest.approx(losses[1], rel=0.01) and losses[0] != losses[1]


def test_killed_at_random_moments_it_comes_to_the_same_result(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path
) -> None:
    # Dropout, augmentation, accumulation, evaluations: all that draws random numbers or keeps state.
    whole = settings_for(
        tmp_path / "whole",
        tiny_checkpoint,
        dataset,
        {"rank": 4, "dropout": 0.2, "vision": True, "tokens": True},
        max_steps=10,
        accumulate=2,
        batch=5,
        learning_rate=3e-3,
        evaluations=4,
        patience=0,
        save_steps=1,
    )
    killed = replace(whole, output=str(tmp_path / "killed"))
    (tmp_path / "killed.toml").write_text(toml(to_dict(killed)))
    process = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("kill_training.py")),
            str(tmp_path / "killed.toml"),
            "7",
            "3",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr[-2000:]
    reached = json.loads(process.stdout.splitlines()[-1])
    assert reached == sorted(set(reached)) and reached[0] > 0 and reached[-1] < 10
    fine_tune(whole)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-6)
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "killed")]
    for row, again in zip(*logs, strict=True):
        assert {**row, "seconds": 0} == pytest.approx({**again, "seconds": 0}, rel=1e-4)


def test_another_training_does_not_go_on_from_it(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path
) -> None:
    settings = settings_for(
        tmp_path / "a", tiny_checkpoint, dataset, max_steps=4, save_steps=1, evaluations=1
    )

    class Stop(Exception):
        pass

    from train import trainer

    original = trainer.AdapterTrainer.log

    def stop_at_two(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        original(self, logs, start_time)
        if self.state.global_step == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(trainer.AdapterTrainer, "log", stop_at_two)
        fine_tune(settings)
    changed = replace(settings, lora=replace(settings.lora, alpha=3.0))
    with pytest.raises(UsageError, match=r"lora\.alpha was 32\.0 and is 3\.0.*remove the folder"):
        fine_tune(changed)
    assert fine_tune(settings).steps == 4


def test_it_stops_early_where_nothing_gets_better(
    tmp_path: Path, tiny_checkpoint: Path, dataset: Path
) -> None:
    settings = settings_for(
        tmp_path / "a",
        tiny_checkpoint,
        dataset,
        max_steps=20,
        learning_rate=1e-12,
        evaluations=20,
        patience=2,
    )
    outcome = fine_tune(settings)
    # Ties go to the lower loss, which rounding alone moves at this rate.
    assert outcome.steps < 20 and outcome.stopped == "no better in 2 evaluations"
    assert outcome.best_step == outcome.steps - 2


def test_the_clock_ends_it(tmp_path: Path, tiny_checkpoint: Path, dataset: Path) -> None:
    settings = settings_for(
        tmp_path / "a",
        tiny_checkpoint,
        dataset,
        epochs=10**5,
        time_limit_minutes=0.04,
        evaluations=2,
        patience=0,
    )
    outcome = fine_tune(settings)
    assert outcome.stopped == "time limit" and 2.0 < 60 * outcome.minutes < 12
    rates = [row["learning_rate"] for row in read_log(tmp_path / "a" / "log.csv") if "learning_rate" in row]
    assert outcome.steps > 2 and rates[-1] < 0.5 * max(rates)


def test_annotations_are_trained_on(tmp_path: Path, tiny_checkpoint: Path, dataset: Path) -> None:
    samples = read_split(dataset, "train")
    examples = annotated_examples(dataset, samples, range(len(samples)))
    assert len(examples) == 4 * len(samples)
    assert [e.wafer for e in annotated_examples(dataset, samples, [3])] == [samples[3].wafer] * 4
    golden = [e for e in examples if e.question == dataset_task(dataset).prompt]
    assert [e.answer for e in golden] == [dataset_task(dataset).answer(s.label) for s in samples]
    assert [e.wafer for e in golden] == [s.wafer for s in samples]
    settings = settings_for(tmp_path / "a", tiny_checkpoint, dataset, max_steps=2)
    outcome = fine_tune(replace(settings, data=replace(settings.data, annotations=True)))
    assert outcome.steps == 2


def test_broken_annotations_are_refused(tmp_path: Path, tiny_task: Task) -> None:
    folder = tmp_path / "dataset"
    build_dataset(BuildConfig(source=Path("synthetic"), train=1, test=1, tune=1, task=tiny_task), folder)
    path, samples = folder / "annotations" / "train.json", read_split(folder, "train")
    entries = json.loads(path.read_text())
    breaks = [
        ({"image": "train/Loc/wafermap_Loc_99.png"}, "not in train"),
        ({"conversations": entries[0]["conversations"][:1]}, "one question and one answer"),
        (
            {"conversations": [{"from": "human", "value": "no mark"}, {"from": "gpt", "value": "a"}]},
            "hold <image>",
        ),
    ]
    for change, says in breaks:
        path.write_text(json.dumps([{**entries[0], **change}]))
        with pytest.raises(DatasetError, match=says):
            annotated_examples(folder, samples, range(9))
    path.write_text("{")
    with pytest.raises(DatasetError, match="cannot read the annotations"):
        annotated_examples(folder, samples, range(9))
    assert sorted(s.label for s in held_out(folder)) == sorted(tiny_task.labels)


def test_few_maps_of_each_class_can_be_taken() -> None:
    labels = ["a"] * 10 + ["b"] * 2
    chosen = at_most(labels, 3, seed=0)
    assert [labels[i] for i in chosen] == ["a"] * 3 + ["b"] * 2
    assert chosen == at_most(labels, 3, seed=0) != at_most(labels, 3, seed=1)
    assert at_most(labels, 0, seed=0) == list(range(12))


def test_steps_follow_epochs() -> None:
    assert total_steps(TrainSettings(epochs=3, batch=8, accumulate=2), 100) == 19
    assert total_steps(TrainSettings(max_steps=5), 100) == 5


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_errors_say_what_to_lower(error: Exception) -> None:
    settings = settled(settings_for(Path("o"), Path("b"), Path("d")))
    says = r"train\.batch \(now 9\) to 4 and raise train\.accumulate to 2.*checkpointing"
    with pytest.raises(ResourceError, match=says), explained_memory(settings):
        raise error
    one = replace(settings, train=replace(settings.train, batch=1, gradient_checkpointing="on"))
    says = "lower the size of the images that the task renders; then"
    with pytest.raises(ResourceError, match=says), explained_memory(one):
        raise error


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explained_memory(Settings()):
        raise RuntimeError("shapes differ")


def test_what_cannot_be_begun_is_refused(tmp_path: Path, tiny_checkpoint: Path, dataset: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.base is not set"):
        fine_tune(Settings(output="x"))
    with pytest.raises(UsageError, match="base folder .*absent does not exist"):
        fine_tune(settings_for(tmp_path / "a", tmp_path / "absent", dataset))
    (tmp_path / "a.partial").mkdir()
    with (tmp_path / "a.partial" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process is training"):
            fine_tune(settings_for(tmp_path / "a", tiny_checkpoint, dataset))
    if not torch.cuda.is_available():
        settings = settings_for(tmp_path / "a", tiny_checkpoint, dataset)
        with pytest.raises(SetupError, match="no GPU here"):
            fine_tune(replace(settings, model=replace(settings.model, device="cuda")))


def toml(table: dict[str, Any]) -> str:
    def lines(values: dict[str, Any]) -> str:
        return "".join(
            f"{key} = {json.dumps(value)}\n" for key, value in values.items() if not isinstance(value, dict)
        )

    return lines(table) + "".join(
        f"[{key}]\n{lines(value)}" for key, value in table.items() if isinstance(value, dict)
    )
