from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from tests.train.rl.toy import brief, vowels
from train.batches import tokenize_turn
from train.curves import read_log
from train.dataset import dataset_task
from train.loading import load_processor
from train.rl.assembly import assemble, read_course
from train.rl.gspo import _explained_divergence, explained_memory, reinforce, settled
from train.rl.prompts import Prompts
from train.rl.rows import PolicyRow
from train.rl.trainer import GspoTrainer
from wafervlm.errors import CheckpointError, ConfigError, DatasetError, ResourceError, TaskError, UsageError

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = "adapter_model.safetensors"


def log_of(out: Path) -> list[dict[str, float]]:
    return read_log(out / "log.csv")


def expected_pay(trainer: GspoTrainer, words: Path, rows: Sequence[PolicyRow]) -> float:
    """What an answer of one token is paid by ``vowels``, expected over all tokens, a mean over ``rows``."""
    trainer.model.eval()
    processor = trainer.processing_class
    inputs = Prompts(processor, dataset_task(words), tags=False).encode(rows)
    with torch.no_grad():
        chances = (trainer.model(**inputs).logits[:, -1] / trainer.temperature).softmax(-1)
    texts = processor.batch_decode([[token] for token in range(chances.shape[1])], skip_special_tokens=True)
    paid = torch.tensor([vowels(rows[0], text, True)["rubric"] for text in texts])
    return float((chances * paid).sum(-1).mean())


def test_what_is_rewarded_becomes_likelier(tmp_path: Path, tiny_checkpoint: Path, words: Path) -> None:
    changes: dict[str, Any] = {"rl__max_tokens": 1, "rl__completions": 16, "train__batch": 16}
    # The logits of random weights lie close together; a low temperature draws them apart.
    changes |= {"rl__temperature": 0.2, "rl__epsilon": 0.2, "rl__epsilon_high": 0.28}
    settings = brief(
        tmp_path / "a", tiny_checkpoint, words, train__max_steps=40, train__learning_rate=2e-2, **changes
    )
    trainer, _ = assemble(settled(settings), tmp_path / "a.partial", None, vowels)
    rows = read_course(settings).tune
    before = expected_pay(trainer, words, rows)
    trainer.train()
    assert expected_pay(trainer, words, rows) > 1.5 * before
    rewards = [row["reward"] for row in trainer.watch.rows if "reward" in row]
    assert len(rewards) == 20 and sum(rewards[-6:]) > 1.5 * sum(rewards[:6])


def test_the_likelihoods_are_the_models_own(
    tmp_path: Path, tiny_checkpoint: Path, adapter: Path, words: Path
) -> None:
    settings = settled(
        brief(tmp_path / "a", tiny_checkpoint, words, model__adapter=str(adapter), lora__rank=None)
    )
    trainer, task = assemble(settings, tmp_path / "a.partial", None, vowels)
    inputs = Prompts(trainer.processing_class, task, tags=False).encode(read_course(settings).tune[:3])
    ids, kept = inputs["input_ids"], 5
    found, entropies, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, **inputs, logits_to_keep=kept, num_images=[1, 1, 1], compute_entropy=True
    )
    logs = trainer.model(**inputs).logits[:, -kept - 1 : -1].log_softmax(-1)
    wanted = logs.gather(-1, ids[:, -kept:, None])[..., 0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropies, -(logs.exp() * logs).sum(-1), rtol=1e-4, atol=1e-5)
    trained = {name: each for name, each in trainer.model.named_parameters() if each.requires_grad}
    assert any("trainable_tokens" in name for name in trained)
    gradients = [torch.autograd.grad(loss.sum(), list(trained.values())) for loss in (found, wanted)]
    for name, ours, theirs in zip(trained, *gradients, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_folder_holds_what_it_should_and_stays(
    tmp_path: Path, tiny_checkpoint: Path, words: Path
) -> None:
    out = tmp_path / "a"
    settings = brief(out, tiny_checkpoint, words, train__max_steps=4, data__tune_maps=9)
    asked: list[str] = []

    def judge(row: PolicyRow, text: str, ended: bool) -> dict[str, float | None]:
        asked.append(row.id)
        return vowels(row, text, ended)

    outcome = reinforce(settings, judge)
    written = [WEIGHTS, "adapter_config.json", "curves.png", "log.csv", "provenance.json", "settings.json"]
    assert {path.name for path in out.iterdir()} == {*written, "task.json"}
    assert not out.with_name("a.partial").exists()
    record = json.loads((out / "provenance.json").read_text())
    assert record["stage"] == "rl" and set(record["inputs"]) == {"base", "rl.json", "dies.npz", "task.json"}
    assert record["settings"]["rl.completions"] == 8 and "lora.rank" in record["settings"]
    assert record["parity"]["tune_reward"] == outcome.tune_reward
    log = log_of(out)
    assert [row["step"] for row in log if "tune_reward" in row] == [0, 4]
    assert [row["step"] for row in log if "clip_ratio" in row] == [2, 4]
    assert all("tune_accuracy" in row for row in log if "tune_reward" in row)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    # The prompts come in the curriculum's order, 8 answers to each, between the two evaluations.
    course, held = read_course(settings), 9
    drawn = asked[held : len(asked) - held]
    wanted = [course.train[course.curriculum[k]].id for k in range(4)]
    assert drawn == [name for name in wanted for _ in range(8)]
    assert not {row.id for row in course.tune} & set(drawn)

    assert reinforce(settings, judge) == replace(outcome, trained_now=False)
    with pytest.raises(UsageError, match="exists already and was not made so"):
        reinforce(replace(settings, train=replace(settings.train, seed=2)), judge)


def test_clipping_acts_from_the_second_update_on(tmp_path: Path, tiny_checkpoint: Path, words: Path) -> None:
    shares = {}
    for updates, passes in ((1, 1), (2, 1), (1, 2)):
        out = tmp_path / f"{updates}-{passes}"
        steps = 2 * updates * passes
        changes: dict[str, Any] = {"rl__updates": updates, "rl__passes": passes, "train__max_steps": steps}
        outcome = reinforce(brief(out, tiny_checkpoint, words, **changes), vowels)
        shares[updates, passes] = outcome.clip_ratio
    # One step on each set of answers: the policy is the one that answered, and the ratio 1.
    assert shares[1, 1] == 0
    assert 0 < shares[2, 1] <= 0.5 and 0 < shares[1, 2] <= 0.5


def test_alike_rewards_teach_nothing_and_are_reported(
    tmp_path: Path, tiny_checkpoint: Path, words: Path
) -> None:
    settings = brief(tmp_path / "a", tiny_checkpoint, words, train__max_steps=4)
    trainer, _ = assemble(settled(settings), tmp_path / "b.partial", None, lambda *_: {"rubric": 0.7})
    before = {
        name: tensor.clone() for name, tensor in trainer.model.named_parameters() if tensor.requires_grad
    }
    trainer.train()
    for name, tensor in trainer.model.named_parameters():
        if name in before:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    shares = [row["zero_variance"] for row in trainer.watch.rows if "zero_variance" in row]
    assert shares == [1.0, 1.0]


def test_a_reward_that_is_no_number_ends_the_training(
    tmp_path: Path, tiny_checkpoint: Path, words: Path
) -> None:
    settings = brief(tmp_path / "a", tiny_checkpoint, words, train__max_steps=4)
    course = read_course(settings)
    poisoned = course.train[course.curriculum[3]].id

    def judge(row: PolicyRow, text: str, ended: bool) -> dict[str, float | None]:
        return {"rubric": math.nan} if row.id == poisoned else vowels(row, text, ended)

    with pytest.raises(DatasetError, match=f"reward for rubric of row {poisoned} is nan"):
        reinforce(settings, judge)
    assert not (tmp_path / "a").exists()


def test_it_goes_on_from_an_adapter_and_keeps_what_is_not_beaten(
    tmp_path: Path, tiny_checkpoint: Path, adapter: Path, words: Path
) -> None:
    out = tmp_path / "a"
    changes: dict[str, Any] = {"model__adapter": str(adapter), "lora__rank": None, "train__max_steps": 2}

    def judge(row: PolicyRow, text: str, ended: bool) -> dict[str, float | None]:
        # Held-out answers earn the same whatever is learned.
        return vowels(row, text, ended) if row.row.part == "train" else {"rubric": 0.5}

    outcome = reinforce(brief(out, tiny_checkpoint, words, **changes), judge)
    assert outcome.best_step == 0 and outcome.tune_reward == outcome.start_reward == 0.5
    start, found = load_file(adapter / WEIGHTS), load_file(out / WEIGHTS)
    assert set(start) == set(found) and any("trainable_tokens" in name for name in start)
    for name in start:
        torch.testing.assert_close(found[name], start[name], rtol=0, atol=0)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4


def test_the_reference_is_the_adapter_it_goes_on_from(
    tmp_path: Path, tiny_checkpoint: Path, adapter: Path, words: Path
) -> None:
    changes: dict[str, Any] = {"model__adapter": str(adapter), "lora__rank": None, "train__max_steps": 4}
    settings = settled(brief(tmp_path / "a", tiny_checkpoint, words, rl__beta=0.05, **changes))
    trainer, _ = assemble(settings, tmp_path / "b.partial", None, vowels)
    trainer.train()
    start = load_file(adapter / WEIGHTS)
    found = {
        name: tensor
        for name, tensor in trainer.model.named_parameters()
        if name.endswith("ref") or ".ref." in name
    }
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, start[name.replace(".ref", "")], rtol=0, atol=0)
    assert len(found) == len(start) and not any(tensor.requires_grad for tensor in found.values())
    kl = [row["kl"] for row in trainer.watch.rows if "kl" in row]
    assert 0 <= kl[0] < kl[-1]
    # At the start policy and reference are one; the first row holds the first round's steps.
    assert kl[0] < 0.1


def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, adapter: Path, words: Path
) -> None:
    broken = tmp_path / "adapter"
    broken.mkdir()
    changes: dict[str, Any] = {"model__adapter": str(broken), "lora__rank": None}
    with pytest.raises(CheckpointError, match="not an adapter folder"):
        reinforce(brief(tmp_path / "a", tiny_checkpoint, words, **changes), vowels)


def test_bare_questions_are_asked_as_in_the_fine_tuning(
    tmp_path: Path, tiny_checkpoint: Path, words: Path
) -> None:
    processor, task = load_processor(tiny_checkpoint), dataset_task(words)
    settings = brief(tmp_path / "a", tiny_checkpoint, words)
    rows = read_course(settings).train[:3]
    bare, tagged = (Prompts(processor, task, tags=tags) for tags in (False, True))
    for row in rows:
        ids, opening = tokenize_turn(processor, task, row.question, row.row.reference_answer, max_length=999)
        assert tuple(bare.encode([row])["input_ids"][0].tolist()) == ids[:opening]
        text = processor.tokenizer.decode(tagged.encode([row])["input_ids"][0])
        assert "<SOLUTION>" in text and row.question in text
    padded = bare.encode(rows)
    assert padded["attention_mask"][:, -1].all() and padded["image_grid_thw"].shape == (3, 3)


def test_what_cannot_be_begun_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = brief(tmp_path / "a", tiny_checkpoint, words)
    with pytest.raises(ConfigError, match=r"model\.base is not set"):
        reinforce(replace(settings, model=replace(settings.model, base="")))
    with pytest.raises(UsageError, match="base folder .* does not exist"):
        reinforce(replace(settings, model=replace(settings.model, base=str(tmp_path / "none"))))
    with pytest.raises(UsageError, match="wafervlm data vqa"):
        reinforce(replace(settings, data=replace(settings.data, dataset=str(tmp_path))))
    with pytest.raises(TaskError, match=r"raise model\.max_length, now 50"):
        reinforce(replace(settings, model=replace(settings.model, max_length=50)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="runs in one"):
        reinforce(settings)


def test_divergence_says_what_to_lower(tmp_path: Path) -> None:
    probabilities = torch.full((4,), math.nan)
    trainer = Mock(state=Mock(global_step=7))
    settings = Mock(train=Mock(learning_rate=100.0))
    message = "diverged at step 7.*lower train.learning_rate .now 100."
    with pytest.raises(ConfigError, match=message), _explained_divergence(settings, trainer):
        torch.multinomial(probabilities, 1)


def test_memory_errors_say_what_to_lower(tmp_path: Path) -> None:
    settings = brief(tmp_path / "a", tmp_path, tmp_path)
    says = r"train\.batch \(now 8\), or rl\.prompts \(now 2\)"
    with pytest.raises(ResourceError, match=says), explained_memory(settings):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_killed_again_and_again_it_comes_to_the_same_result(
    tmp_path: Path, tiny_checkpoint: Path, adapter: Path, words: Path
) -> None:
    script = Path(__file__).parent / "kill_rl.py"
    command = [sys.executable, str(script), str(tiny_checkpoint), str(adapter), str(words)]
    found = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]
    reached = json.loads(found.stdout.splitlines()[-1])
    assert 0 < reached[0] < reached[-1] < 12
    whole, killed = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "killed"))
    for name in whole:
        torch.testing.assert_close(killed[name], whole[name], rtol=0, atol=0)
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in log_of(tmp_path / n)]
        for n in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
