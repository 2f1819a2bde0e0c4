"""The command on a tiny random-weight model: what it writes, and that nothing is asked twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from benchmarks.assessment.answers import answer_all
from benchmarks.assessment.generation import Generator
from benchmarks.assessment.speaker import Asked
from tests.benchmarks.assessment.test_judge import honest
from tests.train.vqa.conftest import ScriptedModel
from train.artefact import read_provenance
from train.dataset import dataset_task
from train.synthetic import wafers
from train.vqa.causes import CAUSES
from train.vqa.replies import Reply, ReplyCache
from wafervlm.cli import main
from wafervlm.errors import ProviderError, UsageError


def words(checkpoint: Path, dataset: Path, out: Path, *more: object) -> list[str]:
    subjects = ["--subject", f"one={checkpoint}", "--subject", f"two={checkpoint}"]
    few = ["--per-class", 1, "--planted", 11, "--max-tokens", 6, "--threads", 1, "--device", "cpu"]
    return [
        str(part) for part in ("benchmark", "--words", *subjects, "--maps", dataset, "-o", out, *few, *more)
    ]


def test_the_command_writes_figures_tables_and_answers_and_goes_on(
    tiny_checkpoint: Path,
    synthetic_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "words"
    command = words(tiny_checkpoint, synthetic_dataset, out)
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "no endpoint was given" in printed.err
    found = json.loads(printed.out.splitlines()[-1])
    assert set(found["real"]) == set(found["planted"]) == {"one", "two"}
    report = json.loads((out / "words.json").read_text(encoding="utf-8"))
    assert report["maps"] == {"real": 9, "planted": 11} and report["judge"] is None
    one, two = report["subjects"].values()
    # Two subjects of the same weights: the second is answered from what was kept.
    assert one == two and one["questions"]["answers"] >= 9 * 3
    accuracy = one["classification"]["accuracy"]
    assert 0 <= accuracy["value"] <= 1 and accuracy["wafers"] == 9
    assert {row["figure"] for row in report["differences"]} > {"accuracy", "rule_score_strict"}
    assert all(row["difference"] is None or row["difference"]["value"] == 0 for row in report["differences"])
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * (9 + 11) and {"text", "claims"} < json.loads(lines[0]).keys()
    markdown, html = ((out / name).read_text(encoding="utf-8") for name in ("words.md", "words.html"))
    for title in (
        "Claims about labelled maps",
        "Rule score of descriptions",
        "Classes named on the same maps",
    ):
        assert f"## {title}" in markdown and title in html
    assert str(tmp_path) not in (out / "words.json").read_text(encoding="utf-8")

    assert main(command) == 0
    assert "complete and of these inputs already" in capsys.readouterr().err

    def asked_again(*_: Any) -> Any:
        raise AssertionError("an answer that was kept was generated again")

    monkeypatch.setattr(Generator, "_generate", asked_again)
    assert (
        main(
            words(tiny_checkpoint, synthetic_dataset, tmp_path / "again", "--answers", f"{out}.answers.jsonl")
        )
        == 0
    )
    again = json.loads((tmp_path / "again" / "words.json").read_text(encoding="utf-8"))
    assert again["subjects"] == report["subjects"]


def test_another_table_of_causes_or_task_makes_another_folder(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, task = tmp_path / "mine.toml", tmp_path / "task.toml"
    table.write_text(CAUSES.read_text(encoding="utf-8") + "\n# mine\n", encoding="utf-8")
    asked = dataset_task(synthetic_dataset)
    task.write_text(json.dumps(replace(asked, system="You read wafers.").to_dict()), encoding="utf-8")
    task = task.rename(task.with_suffix(".json"))
    few = ["--planted", 0, "--questions", 0, "--no-classify"]
    given = words(tiny_checkpoint, synthetic_dataset, tmp_path / "words", *few, "--causes", table)
    assert main(given) == 0
    assert (tmp_path / "words" / "causes.toml").read_bytes() == table.read_bytes()
    for options in ([], ["--causes", table, "--task", task]):
        command = words(tiny_checkpoint, synthetic_dataset, tmp_path / "words", *few, *options)
        assert main(command) == UsageError.exit_code
        assert "other inputs or settings" in capsys.readouterr().err


def test_what_is_kept_of_other_images_is_asked_again(tmp_path: Path) -> None:
    asked, cache = [Asked(wafers(["Center"], seed=0)[0], "Where?")], ReplyCache(tmp_path / "kept")
    for times, task in ((1, "one"), (1, "one"), (2, "two")):
        ready = Mock(numbers="float32", task=task)
        ready.answers = lambda some, most: iter(
            [(place, Reply("Here.", "stop")) for place in range(len(some))]
        )
        answer_all("a", "digest", ready, asked, cache, 8)
        assert len(cache) == times


def test_with_an_endpoint_the_judge_is_reported(
    tiny_checkpoint: Path,
    synthetic_dataset: Path,
    tmp_path: Path,
    scripted: ScriptedModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scripted.script = honest
    out = tmp_path / "words"
    judge = [
        "--judge",
        scripted.url,
        "--model",
        "scripted",
        "--judge-maps",
        3,
        "--retries",
        0,
        "--planted",
        0,
    ]
    assert (
        main(words(tiny_checkpoint, synthetic_dataset, out, *judge, "--questions", 0, "--price", 1, 2)) == 0
    )
    found = json.loads((out / "words.json").read_text(encoding="utf-8"))["judge"]
    assert found["kept"] == 2 * found["requests"] == 2 * 3 * 2 * 2
    assert found["subjects"]["judge_1"]["one"]["whole"]["value"] == pytest.approx(0.2)
    assert "too few judged answers" in found["alignment"]["note"]
    assert found["cost"] == pytest.approx(140e-6 * found["requests"])
    assert "## Scores of the judge" in (out / "words.md").read_text(encoding="utf-8")
    assert (tmp_path / "words.judge.jsonl").is_file()
    printed = capsys.readouterr().out
    assert "What the judge said" in printed and "scores kept              24 of 24" in printed
    assert "cost of this run         0.0017" in printed and "too few judged answers" in printed
    told = json.loads(printed.splitlines()[-1])["judge"]
    assert (told["kept"], told["missing"], told["excluded"], told["spearman"]) == (24, 0, {}, None)


def test_an_outage_of_the_judge_is_an_error_and_the_same_command_completes(
    tiny_checkpoint: Path,
    synthetic_dataset: Path,
    tmp_path: Path,
    scripted: ScriptedModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "words"
    judge = ["--judge", scripted.url, "--model", "scripted", "--judge-maps", 3, "--planted", 0]
    few = ["--questions", 0, "--no-classify", "--retries", 0, "--workers", 1]
    command = words(tiny_checkpoint, synthetic_dataset, out, *judge, *few)
    scripted.script = lambda body: honest(body) if len(scripted.asked) <= 2 else (503, {"error": "down"})
    assert main(command) == ProviderError.exit_code
    printed = capsys.readouterr()
    assert "scores kept                                4 of 24" in printed.out
    assert "left out: status 503                       16" in printed.out
    assert json.loads(printed.out.splitlines()[-1])["judge"]["missing"] == 10
    message = printed.err.splitlines()[-1]
    assert f"10 of 12 requests to {scripted.url} had no reply" in message
    assert f"kept in {out}.judge.jsonl" in message and "the same command asks for the rest" in message
    assert read_provenance(out)["parity"] == {"missing_replies": 10}

    scripted.asked, scripted.script = [], honest
    assert main(command) == 0
    found = json.loads((out / "words.json").read_text(encoding="utf-8"))["judge"]
    assert (found["kept"], found["missing"], found["from_cache"]) == (24, 0, 2)
    assert len(scripted.asked) == 10 and read_provenance(out)["parity"] == {"missing_replies": 0}

    capsys.readouterr()
    assert main(command) == 0 and len(scripted.asked) == 10
    assert "complete and of these inputs already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--subject", "three"], "must be NAME=FOLDER or NAME=FOLDER+ADAPTER"),
        (["--model", "m"], "give its address as well: --judge URL"),
        (["--judge", "localhost", "--model", "m"], "must be a URL"),
        (["--judge", "http://localhost/v1"], "name of the endpoint's model"),
        (["--split", "no"], "has no part 'no'"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    tiny_checkpoint: Path,
    synthetic_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    assert main(words(tiny_checkpoint, synthetic_dataset, tmp_path / "out", *more)) != 0
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
