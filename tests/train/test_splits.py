from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tests.train.maps import write_npz, write_synthetic
from train.sources.npz import read_npz
from train.sources.rows import Rows, rows_of_grids
from train.split_files import describe_split
from train.splits import (
    MARGIN,
    apply_split,
    check_apart,
    hold_out,
    load_split,
    lot_blocks,
    near,
    read_split_file,
    split_path,
    split_rows,
    write_split,
)
from wafervlm.errors import DatasetError, FileFormatError, LeakError, SchemaVersionError, WaferVLMWarning
from wafervlm.wafermap import transform

POOL = "wm811k_pool"


def grids(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 3, (6, 7), dtype=np.uint8) for _ in range(count)]


def rows_at(index: list[int], lots: list[str] | None = None, ordered: bool = True) -> Rows:
    maps = grids(len(index))
    labels = [("Loc", "none", "Center")[i % 3] for i in range(len(index))]
    return rows_of_grids(maps, labels, lots=lots, source_index=index, ordered=ordered)


@given(
    st.lists(st.integers(1, 60), min_size=80, max_size=140),
    st.integers(0, 5),
    st.sampled_from(["unknown", "known", "mixed"]),
)
@settings(max_examples=8, deadline=None)
def test_held_and_kept_share_no_lot(gaps: list[int], seed: int, lots: str) -> None:
    index = np.cumsum(gaps)
    true = [f"lot{i // 24}" for i in index]  # a lot spans at most 24 consecutive rows
    named = [name if lots == "known" or (lots == "mixed" and i % 2) else "" for i, name in enumerate(true)]
    rows = rows_at(index.tolist(), named)
    held, kept = hold_out(rows, share=0.2, seed=seed)
    assert held.any()
    assert not (held & kept).any()
    assert not set(np.array(true)[held]) & set(np.array(true)[kept])
    again, _ = hold_out(rows, share=0.2, seed=seed)
    assert np.array_equal(held, again)


def test_blocks_end_at_gaps_and_at_their_size_and_between_known_lots() -> None:
    index = np.array([0, 1, 2, 30, 31, 100, 120, 140, 160, 180])
    assert lot_blocks(index, size=50).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    lots = np.array(["a", "a", "a", "b", "b", "c", "c", "c", "c", "d"])
    assert lot_blocks(index, lots, size=50).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]
    shuffled = np.array([5, 0, 3])
    assert lot_blocks(index[shuffled], size=50).tolist() == [2, 0, 1]


def test_near_is_less_than_the_margin() -> None:
    others = np.array([100, 500])
    assert near(np.array([75, 76, 124, 125, 499, 600]), others).tolist() == [
        False,
        True,
        True,
        False,
        True,
        False,
    ]
    assert not near(np.array([1]), np.array([], dtype=np.int64)).any()


def test_held_out_blocks_are_spread_over_the_order_and_keep_the_mix() -> None:
    rows = rows_at([40 * (i // 10) + i % 10 for i in range(2000)])
    held, kept = hold_out(rows, share=0.2, seed=3)
    assert 0.18 < held.mean() < 0.22
    assert (held | kept).all()  # blocks end at gaps here, so nothing is lost
    fifths = np.array_split(held, 5)
    assert all(0.1 < fifth.mean() < 0.3 for fifth in fifths)
    assert abs((rows.labels[held] == "Loc").mean() - (rows.labels == "Loc").mean()) < 0.01


def test_too_few_maps_to_hold_out() -> None:
    with pytest.raises(DatasetError, match="cannot hold out a share of 0.2 of 3 maps in 1 blocks"):
        hold_out(rows_at([1, 2, 3]), share=0.2)


def test_split_keeps_turned_maps_and_disputed_labels_out_of_train(tmp_path: Path) -> None:
    source = read_npz(write_synthetic(tmp_path / "s.npz"))
    maps = [source.grid(i) for i in range(len(source))]
    labels = source.labels.tolist()
    first = split_rows(source, name="s", about="")
    tested = set(first.rows["test"].tolist())
    inside = [i for i in range(len(source)) if source.source_index[i] in tested]
    outside = [i for i in range(len(source)) if i not in inside]
    for turn in range(8):  # eight maps of test come again, turned, among the others
        maps[outside[turn]] = transform(maps[inside[turn]], turn)
        labels[outside[turn]] = labels[inside[turn]]
    maps[outside[20]], labels[outside[20]], labels[outside[21]] = maps[outside[21]], "Loc", "Scratch"
    rows = rows_of_grids(maps, labels, source_index=source.source_index.tolist())
    split = split_rows(rows, name="s", about="")
    parts = {part: rows.take(places) for part, places in apply_split(rows, split).items()}
    check_apart(parts)
    in_test = set(parts["test"].canonical.tolist())
    for part in ("train", "tune"):
        assert not in_test & set(parts[part].canonical.tolist())
        assert rows.canonical[outside[20]] not in parts[part].canonical
    total = sum(len(taken) for taken in parts.values())
    assert total + sum(split.dropped.values()) == len(rows)


def test_split_apart_from_other_maps(tmp_path: Path) -> None:
    rows = read_npz(write_synthetic(tmp_path / "s.npz"))
    others = rows.take(slice(0, 40))
    split = split_rows(rows, name="s", about="", apart_from=others)
    for part, places in apply_split(rows, split).items():
        check_apart({part: rows.take(places), "others": others})


def test_sources_without_order_are_split_by_lot_and_warn_where_lots_are_unknown() -> None:
    lots = [f"lot{i % 30}" for i in range(300)]  # scattered, as in a folder of files
    rows = rows_at(list(range(300)), lots, ordered=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = split_rows(rows, name="s", about="")
    check_apart({part: rows.take(places) for part, places in apply_split(rows, split).items()})
    with pytest.warns(WaferVLMWarning, match="does not say the lots"):
        split_rows(rows_at(list(range(300)), ordered=False), name="s", about="")


def test_the_leak_check_names_lot_map_and_parts() -> None:
    one, two = rows_at([1, 2, 3], ["a", "b", ""]), rows_at([901, 902, 903], ["c", "b", ""])
    with pytest.raises(LeakError, match="lot b is in both train and test"):
        check_apart({"train": one, "test": two})
    maps = grids(2)
    turned = rows_of_grids([transform(maps[1], 6)], ["Loc"], source_index=[500])
    plain = rows_of_grids(maps, ["Loc", "Loc"], source_index=[1, 2])
    with pytest.raises(LeakError, match=rf"map {plain.digests[1]} \(row 2\) is in both train and tune"):
        check_apart({"train": plain, "tune": turned, "test": rows_at([9000]).take([])})
    close = rows_of_grids(grids(1, seed=9), ["Loc"], source_index=[2 + MARGIN - 1])
    with pytest.raises(LeakError, match="row 2 lies within a lot's reach"):
        check_apart({"train": plain, "test": close})
    far = rows_of_grids(grids(1, seed=9), ["Loc"], source_index=[2 + MARGIN])
    check_apart({"train": plain, "test": far})


def test_split_file_round_trip(tmp_path: Path) -> None:
    rows = read_npz(write_synthetic(tmp_path / "s.npz"))
    split = split_rows(rows, name="s", about="why")
    write_split(split, tmp_path / "split.json")
    back = read_split_file(tmp_path / "split.json")
    assert (back.name, back.about, back.maps, back.digests) == ("s", "why", split.maps, split.digests)
    assert (back.counts, back.dropped, back.settings) == (split.counts, split.dropped, split.settings)
    assert all(np.array_equal(back.rows[part], split.rows[part]) for part in split.rows)
    assert load_split(tmp_path / "split.json")["test"].tolist() == split.rows["test"].tolist()


def test_empty_part_round_trip(tmp_path: Path) -> None:
    rows = rows_at([5, 6, 9])
    parts = {"train": np.array([0, 2]), "tune": np.array([], dtype=np.int64)}
    write_split(describe_split(rows, parts, name="s", about="", settings={}), tmp_path / "s.json")
    assert {part: index.tolist() for part, index in load_split(tmp_path / "s.json").items()} == {
        "train": [5, 9],
        "tune": [],
    }


def test_split_files_that_are_broken(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_split(split_rows(read_npz(write_synthetic(tmp_path / "s.npz")), name="s", about=""), path)
    record = json.loads(path.read_text())
    for change in (
        {"parts": []},
        {"parts": {"train": {"rows": "1-x"}}},
        {"name": None, "dropped": None, "parts": 3},
    ):
        path.write_text(json.dumps({**record, **change}))
        with pytest.raises(FileFormatError, match="not a split file"):
            read_split_file(path)
    record["parts"]["train"]["maps"] = record["parts"]["train"]["maps"][12:]
    path.write_text(json.dumps(record))
    with pytest.raises(FileFormatError, match="does not have the"):
        read_split_file(path)
    path.write_text(json.dumps({**record, "schema_version": 99}))
    with pytest.raises(SchemaVersionError):
        read_split_file(path)
    path.write_text("{")
    with pytest.raises(FileFormatError):
        read_split_file(path)
    with pytest.raises(DatasetError, match=f"no split 'nothing'; committed are.*{POOL}"):
        split_path("nothing")


def test_a_split_finds_its_maps_where_rows_are_numbered_otherwise(tmp_path: Path) -> None:
    rows = read_npz(write_synthetic(tmp_path / "s.npz"))
    split = split_rows(rows, name="s", about="")
    order = np.random.default_rng(1).permutation(len(rows))
    other = rows_of_grids([rows.grid(i) for i in order], rows.labels[order].tolist())  # rows are 0, 1, 2, ...
    found = apply_split(other, split)
    for part, places in apply_split(rows, split).items():
        assert other.digests[found[part]].tolist() == rows.digests[places].tolist()


def test_a_split_of_another_file_is_refused(tmp_path: Path) -> None:
    split = split_rows(read_npz(write_synthetic(tmp_path / "s.npz")), name="s", about="")
    other = read_npz(write_synthetic(tmp_path / "other.npz", seed=6))
    with pytest.raises(DatasetError, match="made from another file"):
        apply_split(other, split)
    elsewhere = read_npz(write_npz(tmp_path / "far.npz", grids(2), ["Loc", "Loc"], [10**6, 10**6 + 1]))
    with pytest.raises(DatasetError, match="none of the rows"):
        apply_split(elsewhere, split)


def test_the_committed_split_is_what_the_code_makes(wm811k: Path) -> None:
    pool, val = read_npz(wm811k / "train_pool.npz"), read_npz(wm811k / "val.npz")
    committed = read_split_file(split_path(POOL))
    made = split_rows(pool, name=POOL, about=committed.about, seed=committed.settings["seed"], apart_from=val)
    assert {part: index.tolist() for part, index in made.rows.items()} == {
        part: index.tolist() for part, index in committed.rows.items()
    }
    assert made.digests == committed.digests
    assert made.settings == committed.settings


def test_the_committed_test_is_a_fifth_of_the_lots_in_natural_mix(wm811k: Path) -> None:
    pool, val = read_npz(wm811k / "train_pool.npz"), read_npz(wm811k / "val.npz")
    parts = {
        part: pool.take(places)
        for part, places in apply_split(pool, read_split_file(split_path(POOL))).items()
    }
    check_apart({**parts, "val": val})
    assert 6_300 < len(parts["test"]) < 7_000
    for label, count in parts["test"].class_counts().items():
        assert abs(count / len(parts["test"]) - (pool.labels == label).mean()) < 0.015
    held = np.isin(pool.source_index, parts["test"].source_index)
    assert all(0.08 < stretch.mean() < 0.35 for stretch in np.array_split(held, 8))
    assert not parts["train"].disputed.any()
    assert not parts["tune"].disputed.any()


def test_the_committed_split_serves_the_smaller_file_too(wm811k: Path) -> None:
    small = read_npz(wm811k / "train.npz")
    found = apply_split(small, read_split_file(split_path(POOL)))
    whole = load_split(POOL)
    for part, places in found.items():
        assert len(places) > 100
        assert set(small.source_index[places].tolist()) <= set(whole[part].tolist())
    assert sum(map(len, found.values())) > 0.98 * len(small)


def test_the_committed_val_is_all_of_val(wm811k: Path) -> None:
    val = read_npz(wm811k / "val.npz")
    assert apply_split(val, read_split_file(split_path("wm811k_val")))["test"].tolist() == list(
        range(len(val))
    )
