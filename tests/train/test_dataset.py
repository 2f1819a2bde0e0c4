from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.train.maps import write_npz, write_synthetic
from train.artefact import read_provenance
from train.build import BuildConfig, build_dataset
from train.data_commands import data
from train.dataset import dataset_task, read_labelled, read_split, write_maps
from train.samples import annotated_examples
from train.sources.npz import read_npz
from train.sources.rows import rows_of_grids
from train.splits import check_apart, load_split
from wafervlm.errors import DatasetError, FileFormatError, LeakError, TaskError, UsageError, WaferVLMWarning
from wafervlm.render import RenderSpec, render
from wafervlm.task import RECIPE_LABELS, WAFER_DEFECTS, Task
from wafervlm.wafermap import WaferMap

PARTS = ("train", "tune", "test")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("source") / "maps.npz")


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    counts, now = build_dataset(BuildConfig(source, train=5, test=2, tune=1, size=(64, 64)), out)
    assert now
    assert {part: set(classes.values()) for part, classes in counts.items()} == {
        "train": {5},
        "tune": {1},
        "test": {2},
    }
    return out


def copied(dataset: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(dataset, to))


def change_dies(dataset: Path, **arrays: Any) -> None:
    np.savez_compressed(dataset / "dies.npz", **{**dict(np.load(dataset / "dies.npz")), **arrays})


def test_dies_images_and_labels_agree_with_the_source(source: Path, built: Path) -> None:
    rows, task = read_npz(source), dataset_task(built)
    place = {str(index): i for i, index in enumerate(rows.source_index)}
    stored = dict(np.load(built / "dies.npz", allow_pickle=False))
    samples = [sample for part in PARTS for sample in read_split(built, part)]
    assert len(samples) == 9 * 8 == len(stored["labels"])
    for sample, name in zip(samples, stored["images"], strict=True):
        row = place[sample.wafer.id]
        assert np.array_equal(sample.wafer.dies, rows.grid(row))
        assert sample.label == rows.labels[row]
        image = np.asarray(Image.open(built / str(name)))
        assert np.array_equal(image, render(sample.wafer, task.render))
        assert str(name).split("/")[1] == sample.label


def test_folder_holds_what_is_promised_and_nothing_else(built: Path) -> None:
    names = {path.name for path in built.iterdir()}
    assert names == {*PARTS, "annotations", "dies.npz", "split.json", "task.json", "provenance.json"}
    assert (built / "train" / "Edge-Loc" / "wafermap_Edge-Loc_4.png").is_file()
    assert dataset_task(built) == Task.from_dict(
        {**WAFER_DEFECTS.to_dict(), "render": {"height": 64, "width": 64}}
    )
    record = read_provenance(built)
    assert record["stage"] == "data"
    assert set(record["inputs"]) == {"source"}
    assert record["settings"]["train"] == 5


def test_no_lot_and_no_map_is_in_two_parts(source: Path, built: Path) -> None:
    rows, split = read_npz(source), load_split(built / "split.json")
    check_apart({part: rows.take(np.isin(rows.source_index, index)) for part, index in split.items()})
    lots = {part: set((index // 48).tolist()) for part, index in split.items()}
    assert not (lots["train"] & lots["tune"] or lots["train"] & lots["test"] or lots["tune"] & lots["test"])


def test_four_conversations_for_each_image(built: Path) -> None:
    for part, images in (("train", 45), ("tune", 9), ("test", 18)):
        entries = json.loads((built / "annotations" / f"{part}.json").read_text())
        assert len(entries) == 4 * images
        assert len({entry["id"] for entry in entries}) == 4 * images
        assert all((built / entry["image"]).is_file() for entry in entries)
        assert all(entry["image"].startswith(f"{part}/") for entry in entries)


def test_same_command_twice_does_nothing_and_other_settings_are_refused(source: Path, built: Path) -> None:
    stamp = (built / "dies.npz").stat().st_mtime_ns
    counts, now = build_dataset(BuildConfig(source, train=5, test=2, tune=1, size=(64, 64)), built)
    assert not now
    assert counts["train"]["Loc"] == 5
    assert (built / "dies.npz").stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match=r"made from other inputs or settings \(train\); remove"):
        build_dataset(BuildConfig(source, train=6, test=2, tune=1, size=(64, 64)), built)
    with pytest.raises(UsageError, match="was not written by this command; choose another"):
        build_dataset(BuildConfig(source, train=5, test=2, tune=1, size=(64, 64)), built.parent)


def test_seed_decides_the_choice(source: Path, tmp_path: Path, built: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    build_dataset(BuildConfig(source, train=5, test=2, tune=1, size=(64, 64)), same)
    build_dataset(BuildConfig(source, train=5, test=2, tune=1, size=(64, 64), seed=1), other)
    assert (same / "split.json").read_bytes() == (built / "split.json").read_bytes()
    assert (same / "annotations/train.json").read_bytes() == (built / "annotations/train.json").read_bytes()
    assert (other / "split.json").read_bytes() != (built / "split.json").read_bytes()


def test_natural_mix_and_all(tmp_path: Path) -> None:
    rows = read_npz(write_synthetic(tmp_path / "maps.npz", per_class=60))
    keep = [i for i in range(len(rows)) if rows.labels[i] == "none" or rows.source_index[i] % 2]
    taken = rows.take(keep)
    npz = write_npz(
        tmp_path / "mixed.npz",
        [taken.grid(i) for i in range(len(taken))],
        taken.labels.tolist(),
        taken.source_index.tolist(),
    )
    natural, _ = build_dataset(
        BuildConfig(npz, train=150, test=60, natural=True, size=(32, 32)), tmp_path / "n"
    )
    assert sum(natural["train"].values()) == 150
    assert natural["train"]["none"] > 1.3 * np.median(list(natural["train"].values()))
    everything, _ = build_dataset(
        BuildConfig(npz, train=None, test=None, tune=None, size=(32, 32)), tmp_path / "a"
    )
    assert sum(sum(part.values()) for part in everything.values()) > 0.9 * len(taken)


def test_committed_split_is_followed(wm811k: Path, tmp_path: Path) -> None:
    config = BuildConfig(wm811k / "train.npz", train=8, test=3, tune=2, size=(64, 64), split="wm811k_pool")
    build_dataset(config, tmp_path / "data")
    whole = load_split("wm811k_pool")
    for part, index in load_split(tmp_path / "data" / "split.json").items():
        assert len(index)
        assert set(index.tolist()) <= set(whole[part].tolist())
    assert set(read_provenance(tmp_path / "data")["inputs"]) == {"source", "split"}


def test_a_split_that_leaks_fails_loudly_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    from train.split_files import describe_split, write_split

    rows = read_npz(source)
    parts = {"train": np.arange(0, 200), "tune": np.arange(216, 234), "test": np.arange(190, 210)}
    write_split(describe_split(rows, parts, name="bad", about="", settings={}), tmp_path / "bad.json")
    config = BuildConfig(source, train=None, test=None, tune=None, split=str(tmp_path / "bad.json"))
    with pytest.raises(LeakError, match="in both train and test"):
        build_dataset(config, tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {"bad.json"}


def test_recipe_protocol(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "recipe"
    build_dataset(BuildConfig(source, train=10, test=4, size=(240, 256), protocol="recipe"), out)
    rows = read_npz(source)
    assert dataset_task(out).labels == RECIPE_LABELS
    for label in RECIPE_LABELS:
        order = np.flatnonzero(rows.labels == label)
        for number, row in enumerate(order[:14]):
            part = "train" if number < 10 else "test"
            image = Image.open(out / part / label / f"wafermap_{label}_{number}.png")
            assert (image.mode, image.size) == ("RGBA", (256, 240))
            expected = render(rows.grid(row), RenderSpec(240, 256))
            assert np.array_equal(np.asarray(image)[..., :3], expected)
    assert not (out / "train" / "none").exists()
    entries = json.loads((out / "annotations" / "train.json").read_text())
    assert len(entries) == 4 * 80
    assert all((out / "train" / entry["image"]).is_file() for entry in entries)
    assert len(read_split(out, "test")) == 32
    assert len(annotated_examples(out, read_split(out, "train"), range(80))) == 4 * 80
    with pytest.raises(DatasetError, match="no part 'tune'; it has train, test"):
        read_split(out, "tune")


def test_missing_image(built: Path, tmp_path: Path) -> None:
    broken = copied(built, tmp_path / "broken")
    (broken / "test" / "Loc" / "wafermap_Loc_1.png").unlink()
    assert len(read_split(broken, "train")) == 45
    with pytest.raises(DatasetError, match=r"image test/Loc/wafermap_Loc_1\.png .* is missing"):
        read_split(broken, "test")


def test_unknown_label(built: Path, tmp_path: Path) -> None:
    broken = copied(built, tmp_path / "broken")
    labels = np.load(broken / "dies.npz")["labels"]
    labels[0] = "Edgeloc"
    change_dies(broken, labels=labels)
    with pytest.raises(DatasetError, match="labelled 'Edgeloc', which is not one of the task's labels"):
        read_split(broken, "train")


def test_empty_class(built: Path, tmp_path: Path) -> None:
    broken = copied(built, tmp_path / "broken")
    arrays = dict(np.load(broken / "dies.npz"))
    gone = (arrays["labels"] == "Donut") & (arrays["split"] != "train")
    change_dies(broken, split=np.where(gone, "nowhere", arrays["split"]))
    assert read_split(broken, "train")
    assert read_split(broken, "tune")  # a rare class may be missing there
    with pytest.raises(DatasetError, match="class 'Donut' has no map in test"):
        read_split(broken, "test")


def test_class_without_maps_in_the_source(source: Path, tmp_path: Path) -> None:
    task = Task(labels=(*WAFER_DEFECTS.labels, "Comet"), render=RenderSpec(32, 32))
    with pytest.raises(DatasetError, match="class 'Comet' has no map in train"):
        build_dataset(BuildConfig(source, task=task), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_classes_that_the_task_does_not_have(source: Path, tmp_path: Path) -> None:
    task = Task(labels=("Loc", "none"), render=RenderSpec(32, 32))
    with pytest.raises(DatasetError, match="280 maps of classes that the task does not have"):
        build_dataset(BuildConfig(source, task=task), tmp_path / "data")
    counts, _ = build_dataset(
        BuildConfig(source, train=3, test=2, task=task, skip_unknown=True), tmp_path / "data"
    )
    assert counts["train"] == {"Loc": 3, "none": 3}


def test_labels_come_out_in_the_tasks_spelling(built: Path, tmp_path: Path) -> None:
    folder = copied(built / "train", tmp_path / "maps")
    (folder / "Edge-Loc").rename(folder / "EDGE-loc")
    (folder / "none").rename(folder / "None")
    with pytest.warns(WaferVLMWarning, match="lots"):
        counts, _ = build_dataset(BuildConfig(folder, train=2, test=1, size=(64, 64)), tmp_path / "data")
    assert set(counts["train"]) == set(WAFER_DEFECTS.labels)
    assert (tmp_path / "data" / "train" / "Edge-Loc").is_dir()


def test_broken_folders(built: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a dataset folder"):
        read_split(tmp_path, "train")
    broken = copied(built, tmp_path / "broken")
    whole = (broken / "dies.npz").read_bytes()
    (broken / "dies.npz").write_bytes(whole[:1000])
    with pytest.raises(DatasetError, match="the dataset is broken"):
        read_split(broken, "train")
    (broken / "dies.npz").write_bytes(whole)
    change_dies(broken, heights=np.load(broken / "dies.npz")["heights"] + 1)
    with pytest.raises(DatasetError, match="do not fit"):
        read_split(broken, "train")
    (broken / "task.json").write_text("{}")
    with pytest.raises(TaskError):
        read_split(broken, "train")


def test_a_label_cannot_leave_the_folder(tmp_path: Path) -> None:
    grid = np.ones((3, 3), dtype=np.uint8)
    for label in ("../evil", "a/b", "..", "a\\b", "C:x"):
        rows = rows_of_grids([grid, grid], [label, "none"])
        with pytest.raises(DatasetError, match="cannot be the name of a folder"):
            write_maps(
                tmp_path, {"train": rows}, Task(labels=(label, "none")), lambda g: render(g, RenderSpec())
            )
    assert not list(tmp_path.iterdir())


def test_read_labelled_takes_every_source(built: Path, source: Path, tmp_path: Path) -> None:
    assert len(read_labelled(built)) == 72
    assert len(read_labelled(built, "test")) == 18
    from_npz = read_labelled(source)
    assert len(from_npz) == 360
    assert isinstance(from_npz[0].wafer, WaferMap)
    from_folder = read_labelled(built / "test", spec=RenderSpec(64, 64))
    assert sorted(sample.label for sample in from_folder) == sorted(
        s.label for s in read_labelled(built, "test")
    )
    with pytest.raises(DatasetError, match="has no part 'test'"):
        read_labelled(source, "test")
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(FileFormatError):
        read_labelled(tmp_path / "x.npz")


def test_read_labelled_real_val(wm811k: Path) -> None:
    samples = read_labelled(wm811k / "val.npz")
    assert len(samples) == 517
    assert {sample.label for sample in samples} == set(WAFER_DEFECTS.labels)


@pytest.mark.parametrize(
    "settings", [{"train": 0}, {"protocol": "other"}, {"protocol": "recipe", "natural": True}]
)
def test_settings_that_cannot_be_meant(source: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BuildConfig(source, **settings)


def test_command(source: Path, tmp_path: Path) -> None:
    runner, out = CliRunner(), tmp_path / "data"
    arguments = [
        "build",
        "-d",
        str(source),
        "-o",
        str(out),
        "-t",
        "all",
        "-e",
        "2",
        "-s",
        "32",
        "48",
        "--json",
    ]
    done = runner.invoke(data, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.strip())
    assert result["dataset"] == str(out)
    assert result["maps"]["test"]["none"] == 2
    assert result["maps"]["train"]["none"] > 20
    assert "next: wafervlm train" in done.stderr
    assert (dataset_task(out).render.height, dataset_task(out).render.width) == (32, 48)
    again = runner.invoke(data, arguments)
    assert "nothing to do" in again.stderr
    refused = runner.invoke(data, ["build", "-d", str(source), "-o", str(out), "-t", "many"])
    assert refused.exit_code == 2
    assert "neither a number of maps" in refused.output


def test_command_with_a_task_file_and_split_command(source: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.json"
    task.write_text(
        json.dumps({"labels": ["Loc", "none"], "prompt": "Which?", "render": {"height": 32, "width": 32}})
    )
    runner = CliRunner()
    made = runner.invoke(data, ["split", "-d", str(source), "-o", str(tmp_path / "s.json"), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["maps"]["test"]["Loc"] >= 5
    done = runner.invoke(
        data,
        ["build", "-d", str(source), "-o", str(tmp_path / "data"), "-t", "4", "-e", "2", "--skip-unknown",
         "--task", str(task), "--split-file", str(tmp_path / "s.json")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert dataset_task(tmp_path / "data").prompt == "Which?"
    assert len(read_split(tmp_path / "data", "train")) == 8


@pytest.mark.parametrize("command", ["build", "split"])
def test_help_has_an_example(command: str) -> None:
    done = CliRunner().invoke(data, [command, "--help"])
    assert done.exit_code == 0
    assert f"wafervlm data {command}" in done.output
