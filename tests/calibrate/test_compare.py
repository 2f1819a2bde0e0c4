"""The table of what calibration on wafer maps is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from calibrate.compare import NEAREST, OURS, WAYS, Row, _provenance, compare, maps_to_judge, markdown
from calibrate.gptq import Scheme
from calibrate.stage import CalibrateSettings, calibrate
from train.artefact import is_complete, read_provenance
from train.dataset import read_split
from wafervlm.errors import DatasetError

SETTINGS = CalibrateSettings(Scheme(group=32), maps=18, batch=9, check_maps=27)


@pytest.fixture(scope="module")
def table(tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table") / "comparison"
    compare(tiny_checkpoint, synthetic_dataset, out, SETTINGS)
    return out


def test_every_way_is_judged_at_four_and_three_bits(table: Path) -> None:
    record = json.loads((table / "comparison.json").read_text())
    rows = {(row["method"], row["bits"]): row for row in record["rows"]}
    assert record["maps"] == 27 and record["part"] == "tune"
    ways = [*WAYS, NEAREST]
    assert set(rows) == {("full precision", 32)} | {(way, bits) for way in ways for bits in (4, 3)}
    full = rows["full precision", 32]
    assert full["label_agreement"] == 1
    assert full["kl"] == 0
    for row in record["rows"]:
        for name in ("label_agreement", "kl"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            assert (row[f"{name}_low"] < row[f"{name}_high"]) is (row is not full)
    assert len({row["kl"] for row in record["rows"]}) == 11
    for way in ways:
        assert 0 < rows[way, 4]["kl"] < rows[way, 3]["kl"]
    for bits in (4, 3):
        assert rows[OURS, bits]["kl"] < rows[NEAREST, bits]["kl"]


def test_its_row_is_what_the_stage_measures(
    table: Path, tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    figures = calibrate(tiny_checkpoint, synthetic_dataset, tmp_path / "gptq", SETTINGS)
    rows = json.loads((table / "comparison.json").read_text())["rows"]
    of = {(row["method"], row["bits"]): row for row in rows}
    assert of[OURS, 4]["kl"] == pytest.approx(figures["kl"], rel=1e-3)
    assert of[NEAREST, 4]["kl"] == pytest.approx(figures["kl_nearest"], rel=1e-3)


def test_a_complete_table_is_left_as_it_is(
    table: Path, tiny_checkpoint: Path, synthetic_dataset: Path
) -> None:
    before = (table / "comparison.json").stat().st_mtime_ns
    rows = compare(tiny_checkpoint, synthetic_dataset, table, SETTINGS)
    assert len(rows) == 11
    assert (table / "comparison.json").stat().st_mtime_ns == before


def test_the_picture_is_a_picture(table: Path) -> None:
    with Image.open(table / "comparison.png") as picture:
        picture.load()
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_markdown_has_a_line_for_each_row() -> None:
    row = Row("GPTQ on wafer maps", 4, 0.995, 0.91, 0.00012, 0.985, 0.999, 0.0001, 0.00015)
    head, _, line = markdown([row], 517).splitlines()
    assert head.endswith("KL, nats (95 %), 517 maps |")
    expected = "99.50% (98.50% to 99.90%) | 91.00% | 0.00012 (0.0001 to 0.00015)"
    assert line == f"| GPTQ on wafer maps | 4 | {expected} |"


def test_maps_to_judge_are_the_part_that_is_named(synthetic_dataset: Path, tmp_path: Path) -> None:
    tune = [s.wafer.digest for s in read_split(synthetic_dataset, "tune")]
    test = [s.wafer.digest for s in read_split(synthetic_dataset, "test")]
    found = [s.wafer.digest for s in maps_to_judge(synthetic_dataset, synthetic_dataset, "test")]
    assert found == test
    assert [s.wafer.digest for s in maps_to_judge(synthetic_dataset, None, "test")] == tune
    whole = maps_to_judge(synthetic_dataset, synthetic_dataset / "test", "tune")
    assert len(whole) == len(test)  # a folder of class folders has no parts


def test_a_part_that_is_not_there_is_told(synthetic_dataset: Path) -> None:
    with pytest.raises(DatasetError, match="has no part 'held'; it has train, tune, test"):
        maps_to_judge(synthetic_dataset, synthetic_dataset, "held")


def test_a_table_of_another_part_is_another_table(
    table: Path, tiny_checkpoint: Path, synthetic_dataset: Path
) -> None:
    made = read_provenance(table)["settings"]
    assert made["part"] == "tune"
    kept = _provenance(tiny_checkpoint, synthetic_dataset, SETTINGS, None, "test")
    other = _provenance(tiny_checkpoint, synthetic_dataset, SETTINGS, synthetic_dataset, "test")
    assert is_complete(table, kept) and not is_complete(table, other)


def test_other_maps_may_be_judged_on(tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        compare(tiny_checkpoint, synthetic_dataset, tmp_path / "out", SETTINGS, tmp_path / "empty")
    assert not (tmp_path / "out").exists()
