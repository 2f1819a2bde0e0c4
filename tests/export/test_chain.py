"""Following a checkpoint's provenance upwards, by digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.chain import WM811K_CITATIONS, citations_of, collect_chain
from train.artefact import PROVENANCE, Provenance, folder_digest, write_provenance
from wafervlm.task import RECIPE_LABELS, WAFER_DEFECTS


def artefact(folder: Path, stage: str, created: str, inputs: dict[str, str], **settings: Any) -> str:
    folder.mkdir(parents=True)
    (folder / "content").write_text(stage)
    write_provenance(folder, Provenance(stage, inputs=inputs, settings=settings))
    record = json.loads((folder / PROVENANCE).read_text())
    (folder / PROVENANCE).write_text(json.dumps({**record, "created": created}))
    return folder_digest(folder)


@pytest.fixture
def line(tmp_path: Path) -> Path:
    """data -> train -> merge, the dataset elsewhere; and a folder that has nothing to do with it."""
    runs = tmp_path / "runs"
    data = artefact(
        tmp_path / "data", "data", "2026-01-01", {"source": "0" * 64}, task=WAFER_DEFECTS.to_dict()
    )
    adapter = artefact(runs / "adapter", "train", "2026-01-02", {"data": data}, base=str(tmp_path / "base"))
    artefact(runs / "stranger", "train", "2026-01-02", {})
    artefact(runs / "merged", "merge", "2026-01-03", {"adapter": adapter, "base": "1" * 64})
    return tmp_path


def test_the_chain_follows_digests_to_the_folders_beside(line: Path) -> None:
    records = collect_chain(line / "runs" / "merged")
    assert [record["stage"] for record in records] == ["train", "merge"]
    assert records[0]["digest"] == records[1]["inputs"]["adapter"]
    assert records[0]["settings"]["base"] == "base"  # no path of this machine travels


def test_other_folders_join_it(line: Path) -> None:
    records = collect_chain(line / "runs" / "merged", [line / "data"])
    assert [record["stage"] for record in records] == ["data", "train", "merge"]


def test_a_checkpoint_without_a_record_has_an_empty_chain(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert collect_chain(tmp_path / "checkpoint") == ()


@pytest.mark.parametrize(
    ("source", "labels", "wm811k", "cited"),
    [
        ("0" * 64, WAFER_DEFECTS.labels, None, True),
        ("synthetic", WAFER_DEFECTS.labels, None, False),
        ("0" * 64, ("scratch", "good"), None, False),
        ("0" * 64, RECIPE_LABELS, False, False),
        ("synthetic", ("scratch", "good"), True, True),
    ],
)
def test_wm811k_is_cited_where_it_was_used(
    source: str, labels: tuple[str, ...], wm811k: bool | None, cited: bool
) -> None:
    record = {"stage": "data", "inputs": {"source": source}, "settings": {"task": {"labels": list(labels)}}}
    assert citations_of([record], wm811k) == (WM811K_CITATIONS if cited else ())
    assert "10.1109/TSM.2014.2364237" in WM811K_CITATIONS[0]
