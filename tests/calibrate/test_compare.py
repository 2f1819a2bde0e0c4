"""The table of what calibration on wafer maps is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from calibrate.compare import KINDS, NEAREST, Row, compare, markdown
from calibrate.gptq import Scheme
from calibrate.stage import CalibrateSettings, calibrate
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
    assert record["maps"] == 27
    ways = [*KINDS.values(), NEAREST]
    assert set(rows) == {("full precision", 32)} | {(way, bits) for way in ways for bits in (4, 3)}
    full = rows["full precision", 32]
    assert full["label_agreement"] == 1
    assert full["kl"] == 0
    assert len({row["kl"] for row in record["rows"]}) == 9
    for way in ways:
        assert 0 < rows[way, 4]["kl"] < rows[way, 3]["kl"]
    for bits in (4, 3):
        assert rows[KINDS["wafers"], bits]["kl"] < rows[NEAREST, bits]["kl"]


def test_its_row_is_what_the_stage_measures(
    table: Path, tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    figures = calibrate(tiny_checkpoint, synthetic_dataset, tmp_path / "gptq", SETTINGS)
    rows = json.loads((table / "comparison.json").read_text())["rows"]
    of = {(row["method"], row["bits"]): row for row in rows}
    assert of[KINDS["wafers"], 4]["kl"] == pytest.approx(figures["kl"], rel=1e-3)
    assert of[NEAREST, 4]["kl"] == pytest.approx(figures["kl_nearest"], rel=1e-3)


def test_a_complete_table_is_left_as_it_is(
    table: Path, tiny_checkpoint: Path, synthetic_dataset: Path
) -> None:
    before = (table / "comparison.json").stat().st_mtime_ns
    rows = compare(tiny_checkpoint, synthetic_dataset, table, SETTINGS)
    assert len(rows) == 9
    assert (table / "comparison.json").stat().st_mtime_ns == before


def test_the_picture_is_a_picture(table: Path) -> None:
    with Image.open(table / "comparison.png") as picture:
        picture.load()
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_markdown_has_a_line_for_each_row() -> None:
    text = markdown([Row("GPTQ on wafer maps", 4, 0.995, 0.91, 0.00012)], 517)
    assert text.splitlines()[0].endswith("KL, nats (517 maps) |")
    assert text.splitlines()[2] == "| GPTQ on wafer maps | 4 | 99.50% | 91.00% | 0.00012 |"


def test_other_maps_may_be_judged_on(tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        compare(tiny_checkpoint, synthetic_dataset, tmp_path / "out", SETTINGS, tmp_path / "empty")
    assert not (tmp_path / "out").exists()
