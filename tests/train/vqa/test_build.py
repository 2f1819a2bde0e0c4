from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from train.artefact import read_provenance
from train.data_commands import data
from train.dataset import read_split
from train.rubrics.lint import lint
from train.samples import annotated_examples
from train.vqa.build import VqaConfig, build_vqa
from train.vqa.rows import DIFFICULTIES, RlRow, VqaRow, read_rows
from wafervlm.errors import ConfigError, DatasetError, UsageError
from wafervlm.words.question import DESCRIBE_QUESTION

PARTS = ("train", "tune", "test")


def test_every_wafer_gets_eight_to_ten_questions_of_every_type(words_folder: Path) -> None:
    rows = read_rows(words_folder / "sft.json", VqaRow)
    for image in {row.image for row in rows}:
        of_wafer = [row for row in rows if row.image == image]
        types = Counter("defect type" if "type" in row.kind else row.question_type for row in of_wafer)
        assert 8 <= len(of_wafer) <= 10
        assert 1 <= types["defect type"] <= 2 and 1 <= types["root_cause"] <= 2
        assert 2 <= types["spatial"] <= 3 and 2 <= types["morphological"] <= 3
        assert 1 <= types["consistency"] <= 2
        assert len({row.id for row in of_wafer}) == len(of_wafer)
    assert {row.difficulty for row in rows} == set(DIFFICULTIES)


def test_rows_are_of_the_datasets_wafers_and_parts(words_folder: Path, synthetic_dataset: Path) -> None:
    with np.load(synthetic_dataset / "dies.npz") as stored:
        parts = dict(zip(stored["images"].tolist(), stored["split"].tolist(), strict=True))
        labels = dict(zip(stored["images"].tolist(), stored["labels"].tolist(), strict=True))
    questions = read_rows(words_folder / "sft.json", VqaRow)
    prompts = read_rows(words_folder / "rl.json", RlRow)
    rows: list[VqaRow | RlRow] = [*questions, *prompts]
    assert {row.image for row in rows} == parts.keys()
    assert all(parts[row.image] == row.part and row.wafer_label == (labels[row.image],) for row in rows)
    for name in ("descriptions.json", "rubrics.json"):
        entries = json.loads((words_folder / name).read_text(encoding="utf-8"))
        assert [entry["image"] for entry in entries] == list(parts)


def test_a_training_takes_the_folder_as_a_dataset(words_folder: Path, synthetic_dataset: Path) -> None:
    for part in PARTS:
        before, after = (read_split(folder, part) for folder in (synthetic_dataset, words_folder))
        assert [sample.wafer for sample in before] == [sample.wafer for sample in after]
    samples = read_split(words_folder, "train")
    examples = annotated_examples(words_folder, samples, range(len(samples)))
    asked = Counter(example.question for example in examples)
    assert asked[DESCRIBE_QUESTION] == len(samples)
    assert len(examples) >= 13 * len(samples)


def test_the_set_is_a_sound_reward(words_folder: Path) -> None:
    report = lint(words_folder)
    assert report.passed, report.failures
    assert report.scored == report.rows >= 2 * 108


def test_counts_samples_and_provenance_stand_beside(words_folder: Path) -> None:
    counts = json.loads((words_folder / "counts.json").read_text(encoding="utf-8"))
    rows = read_rows(words_folder / "sft.json", VqaRow)
    assert sum(sum(counts[part]["questions"].values()) for part in PARTS) == len(rows)
    assert counts["train"]["wafers"] == 54
    page = (words_folder / "samples.html").read_text(encoding="utf-8")
    assert "Root-cause candidates" in page and page.count("<img") == 27
    made = read_provenance(words_folder)
    assert made["stage"] == "vqa" and set(made["inputs"]) == {"dies.npz", "task.json", "causes"}


def test_processes_change_nothing_and_a_second_call_has_nothing_to_do(
    words_folder: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "words"
    _, now = build_vqa(VqaConfig(synthetic_dataset, processes=2), out)
    assert now
    for name in ("sft.json", "rl.json", "descriptions.json", "rubrics.json"):
        assert (out / name).read_bytes() == (words_folder / name).read_bytes()
    assert build_vqa(VqaConfig(synthetic_dataset), out)[1] is False
    with pytest.raises(UsageError, match="made from other inputs or settings"):
        build_vqa(VqaConfig(synthetic_dataset, seed=5), out)


def test_part_of_a_dataset_is_a_dataset(synthetic_dataset: Path, tmp_path: Path) -> None:
    counts, _ = build_vqa(VqaConfig(synthetic_dataset, per_class=2), tmp_path / "words")
    assert {part: counts[part]["wafers"] for part in PARTS} == dict.fromkeys(PARTS, 18)
    whole = {sample.wafer.digest for sample in read_split(synthetic_dataset, "test")}
    assert {sample.wafer.digest for sample in read_split(tmp_path / "words", "test")} < whole


def test_the_command_writes_and_says_what(synthetic_dataset: Path, tmp_path: Path) -> None:
    words = ["vqa", str(synthetic_dataset), "-o", str(tmp_path / "words"), "--per-class", "1", "--json"]
    result = CliRunner().invoke(data, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["train"]["wafers"] == 9
    assert "next: wafervlm data lint" in result.stderr


def test_what_cannot_be_is_refused(synthetic_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a dataset folder"):
        build_vqa(VqaConfig(tmp_path), tmp_path / "words")
    table = tmp_path / "own.toml"
    table.write_text(
        '[source.s]\nstrength = "weak"\nworks = ["notes"]\n'
        "[label.Loc]\nclock = true\nsynonyms = []\ncandidate = []\n"
    )
    with pytest.raises(ConfigError, match=r"own.toml has no \[label.Center\]"):
        build_vqa(VqaConfig(synthetic_dataset, causes=table), tmp_path / "words")
    broken = shutil.copytree(synthetic_dataset, tmp_path / "broken")
    next(broken.glob("test/*/*.png")).unlink()
    with pytest.raises(DatasetError, match="is missing"):
        build_vqa(VqaConfig(broken), tmp_path / "words")
    assert not (tmp_path / "words").exists()
    result = CliRunner().invoke(data, ["vqa", str(synthetic_dataset), "-o", "x", "--model", "m"])
    assert isinstance(result.exception, UsageError)
