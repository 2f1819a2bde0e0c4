"""The folder that cleaning writes: nothing changed unless asked, and taken on by the stages after it."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.train.maps import write_npz
from train.build import BuildConfig, build_dataset
from train.cleaning.clean import CleanConfig, apply, clean
from train.cleaning.duplicates import conflicts
from train.cleaning.npz import write_npz as save_rows
from train.cleaning.suspects import Suspect
from train.data_commands import data
from train.dataset import read_split
from train.sources import read_source
from train.sources.rows import rows_of_grids
from train.synthetic import wafers
from wafervlm.errors import UsageError, WaferVLMWarning
from wafervlm.task import WAFER_DEFECTS


def suspects(folder: Path) -> list[dict[str, str]]:
    with (folder / "suspects.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def labels(folder: Path, part: str) -> list[tuple[str, str]]:
    return [(sample.wafer.id, sample.label) for sample in read_split(folder, part)]


def config(source: Path, base: Path, tmp_path: Path, **options: object) -> CleanConfig:
    keep = tmp_path / "features.npz"
    return CleanConfig(BuildConfig(source=source), base=base, features=keep, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of 180 synthetic maps on 64x64 images, one of each class labelled wrong."""
    names = list(WAFER_DEFECTS.labels) * 20
    grids = [wafer.dies for wafer in wafers(names, seed=2)]
    for i in range(0, 90, 10):
        names[i] = "Edge-Ring" if names[i] != "Edge-Ring" else "Center"
    folder = tmp_path_factory.mktemp("doubtful")
    source = write_npz(folder / "maps.npz", grids, names, lots=[f"lot{i // 6}" for i in range(len(names))])
    whole = BuildConfig(source=source, train=None, test=None, tune=None, size=(64, 64))
    build_dataset(whole, folder / "dataset")
    return folder / "dataset"


def test_nothing_is_changed_unless_asked(doubtful: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    asked, out = config(doubtful, tiny_checkpoint, tmp_path), tmp_path / "out"
    counts, written = clean(asked, out)
    assert written and counts["dropped"] == counts["relabelled"] == 0
    for part in ("train", "tune", "test"):
        assert labels(out, part) == labels(doubtful, part)
    assert len(suspects(out)) == counts["suspects"] > 5
    assert {line["done"] for line in suspects(out)} == {"listed"}
    assert len(read_source(out / "maps.npz")) == counts["maps"] == sum(counts["parts"].values())
    for name in ("sheet.png", "representatives.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 500
    assert "nothing was changed" in (out / "report.md").read_text(encoding="utf-8")
    assert clean(asked, out) == (counts, False)


def test_suspects_are_dropped_or_relabelled_and_part_test_stays(
    doubtful: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    drop, relabel = tmp_path / "drop", tmp_path / "relabel"
    clean(config(doubtful, tiny_checkpoint, tmp_path, drop=3), drop)
    clean(config(doubtful, tiny_checkpoint, tmp_path, drop=3, relabel=True), relabel)
    dropped = [line for line in suspects(drop) if line["done"] == "dropped"]
    changeable = [line["id"] for line in suspects(drop) if line["part"] != "test"]
    assert [line["id"] for line in dropped] == changeable[:3]
    before, left, now = (
        dict(labels(folder, "train") + labels(folder, "tune")) for folder in (doubtful, drop, relabel)
    )
    assert before.keys() - left.keys() == {line["id"] for line in dropped}
    assert {name: label for name, label in now.items() if label != before[name]} == {
        line["id"]: line["suggested"] for line in dropped
    }
    assert labels(drop, "test") == labels(relabel, "test") == labels(doubtful, "test")


def test_wrong_labels_are_found_with_the_right_one(
    doubtful: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    clean(config(doubtful, tiny_checkpoint, tmp_path, drop_above=0.9, relabel=True), tmp_path / "out")
    wrong = {str(i): WAFER_DEFECTS.labels[i % 9] for i in range(0, 90, 10)}
    right = [
        line["suggested"] == wrong[line["id"]] for line in suspects(tmp_path / "out") if line["id"] in wrong
    ]
    assert sum(right) >= 0.7 * len(wrong)
    assert all(float(line["score"]) >= 0.9 for line in suspects(tmp_path / "out") if line["done"] != "listed")


def test_a_source_becomes_a_dataset_that_words_are_written_for(tiny_checkpoint: Path, tmp_path: Path) -> None:
    names = list(WAFER_DEFECTS.labels) * 20
    grids = [wafer.dies for wafer in wafers(names, seed=2)]
    # Wafer 30 is there once more, mirrored, with another label.
    grids.append(np.fliplr(grids[30]).copy())
    names.append("Loc" if names[30] != "Loc" else "Center")
    source = write_npz(tmp_path / "maps.npz", grids, names, lots=[f"lot{i // 6}" for i in range(len(names))])
    run = CliRunner().invoke(
        data,
        ["clean", str(source), "-o", str(tmp_path / "out"), "-b", str(tiny_checkpoint), "--json"],
        catch_exceptions=False,
    )
    assert run.exit_code == 0
    told = json.loads(run.stdout)
    assert told["conflicts"] == 1 and told["maps"] == 181
    assert "turned or mirrored" in suspects(tmp_path / "out")[0]["reason"]
    run = CliRunner().invoke(data, ["vqa", str(tmp_path / "out"), "-o", str(tmp_path / "vqa")])
    assert run.exit_code == 0, run.output
    counted = json.loads((tmp_path / "vqa" / "counts.json").read_text(encoding="utf-8"))
    assert {part: counted[part]["wafers"] for part in told["parts"]} == told["parts"]


def test_labels_of_part_test_do_not_say_which_train_maps_are_suspects(
    doubtful: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(doubtful, other)
    with np.load(other / "dies.npz") as stored:
        arrays = dict(stored)
    turned = {"Center": "Donut", "Donut": "Center", "Loc": "Edge-Loc", "Edge-Loc": "Loc"}
    tested = arrays["split"] == "test"
    assert tested.any()
    arrays["labels"][tested] = [turned.get(name, name) for name in arrays["labels"][tested]]
    np.savez(other / "dies.npz", **arrays)
    found = []
    for source in (doubtful, other):
        clean(config(source, tiny_checkpoint, tmp_path), tmp_path / f"of {source.name}")
        lines = suspects(tmp_path / f"of {source.name}")
        found.append([line["id"] for line in lines if line["part"] != "test"])
        assert any(line["part"] == "test" for line in lines)
    assert found[0] == found[1] != []


def test_maps_written_are_split_as_they_were(tmp_path: Path) -> None:
    grids = [wafer.dies for wafer in wafers(["Center", "Loc"] * 5, seed=4)]
    # Each but the last is there twice, under two labels for the first.
    labels = ["Center", "Loc", *["Center"] * 8]
    rows = rows_of_grids([grids[0], grids[0], *grids[1:9]], labels, ordered=False)
    rows = replace(rows, disputed=np.array([True, True, *[False] * 7, True]))
    found = conflicts(rows)
    wrong = Suspect(1, "Loc", "Center", 1.0, "", 0.0, 1.0)
    for relabel, left in ((False, 9), (True, 10)):
        now, kept = apply(rows, [wrong], found, relabel=relabel)
        save_rows(now.take(kept), tmp_path / "maps.npz")
        read = read_source(tmp_path / "maps.npz")
        assert len(read) == left and not read.ordered
        # The source alone knows of the other twin of the last.
        assert read.disputed.tolist() == [False] * (left - 1) + [True]


def test_a_source_of_few_lots_is_listed_without_a_dataset(tiny_checkpoint: Path, tmp_path: Path) -> None:
    names = ["Center", "Loc"] * 15
    grids = [wafer.dies for wafer in wafers(names, seed=4)]
    source = write_npz(tmp_path / "maps.npz", grids, names, lots=[f"lot{i // 15}" for i in range(30)])
    with pytest.warns(WaferVLMWarning, match="cannot be split"):
        counts, _ = clean(config(source, tiny_checkpoint, tmp_path), tmp_path / "out")
    assert counts["parts"] == {} and not (tmp_path / "out" / "dies.npz").exists()
    assert len(read_source(tmp_path / "out" / "maps.npz")) == 30


def test_a_source_whose_test_part_lacks_a_class_is_listed_without_a_dataset(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [*["Center", "Loc", ""] * 40, *WAFER_DEFECTS.labels]
    grids = [wafer.dies for wafer in wafers([name or "none" for name in names], seed=4)]
    lots = [f"lot{i // 4}" for i in range(120)] + ["last"] * 9
    source = write_npz(tmp_path / "maps.npz", grids, names, lots=lots)
    with pytest.warns(WaferVLMWarning, match=r"only maps: class '.*' has no map in train of .*maps\.npz"):
        counts, _ = clean(config(source, tiny_checkpoint, tmp_path), tmp_path / "out")
    assert counts["parts"] == {} and counts["maps"] == 89
    assert "40 maps without a label and 0 of other classes are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": 3, "drop_above": 0.9}, "not both"),
        ({"drop": 0}, "1 or more"),
        ({"drop_above": 0.3}, "0.5 to 1"),
        ({"relabel": True}, "say which suspects"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        config(tmp_path, tmp_path, tmp_path, **options)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    doubtful: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    asked = config(doubtful, tiny_checkpoint, tmp_path)
    with pytest.raises(UsageError, match="cannot be written, since .*file is no folder"):
        clean(asked, tmp_path / "file" / "out")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="was not written by this command"):
        clean(asked, tmp_path / "other")
    assert asked.features is not None and not asked.features.exists()


def test_a_source_that_is_not_there(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        clean(config(tmp_path / "no", tiny_checkpoint, tmp_path), tmp_path / "out")
