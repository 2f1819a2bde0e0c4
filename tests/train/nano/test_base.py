"""Training the base: its batches, its schedule, and going on where it stopped."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import train.nano.base as base
import train.nano.stream as stream
from train.artefact import Provenance, claim, read_provenance
from train.nano.config import TINY, build_model_folder, describe, train_tokenizer
from train.nano.corpus import tokenizer_texts
from train.nano.log import read_rows
from train.nano.plan import BaseSettings, learning_rate
from wafervlm.errors import UsageError

SETTINGS = replace(
    BaseSettings(), sight_steps=3, steps=5, word_steps=2, batch=2, save_every=2, warmup=2, questions=2
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (base, stream):
        monkeypatch.setattr(module, "NANO", TINY)
    monkeypatch.setattr(base, "tokenizer_texts", partial(tokenizer_texts, scenes=20))


def test_schedule_rises_stays_and_falls() -> None:
    settings = BaseSettings(sight_steps=500, steps=1000, warmup=100, decay=0.3)
    rates = [learning_rate(step, settings) for step in range(1500)]
    assert rates[0] == rates[500] == pytest.approx(1e-5)
    assert rates[100] == rates[499] == rates[600] == rates[1199] == settings.learning_rate
    assert rates[1350] == pytest.approx(settings.learning_rate / 2)
    assert rates[-1] < 1e-5


def test_the_tower_learns_alone_then_questions_come_then_words() -> None:
    settings = BaseSettings(sight_steps=3, steps=5, word_steps=2)
    assert [settings.sees(step) for step in range(8)] == [True] * 3 + [False] * 5
    assert [settings.repeats(step) for step in range(8)] == [False] * 6 + [True] * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("stop", "choices"), [(2, 0.0), (4, 0.0), (4, 0.5)])
def test_interrupted_training_comes_to_the_same_weights(tmp_path: Path, stop: int, choices: float) -> None:
    settings = replace(SETTINGS, choices=choices)
    base.train_base(None, tmp_path / "whole", settings)

    class Stop(Exception):
        pass

    def stop_there(folder: Path, *_: object) -> None:
        raise Stop

    def stop_after(training: base.BaseTraining, step: int) -> None:
        save(training, step)
        if step == stop:
            raise Stop

    save = base.BaseTraining.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base.BaseTraining, "save", stop_after)
        with pytest.raises(Stop):
            base.train_base(None, tmp_path / "parts", settings)
        # Within a checkpoint, too: it counts only when it is whole.
        patch.setattr(base.BaseTraining, "save", save)
        patch.setattr(base, "flush_tree", stop_there)
        with pytest.raises(Stop):
            base.train_base(None, tmp_path / "parts", settings)
    base.train_base(None, tmp_path / "parts", settings)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert (tmp_path / "whole-curve.png").read_bytes().startswith(b"\x89PNG")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6)
    logs = [read_rows(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    assert [[row["step"], row["loss"]] for row in logs[0]] == [[row["step"], row["loss"]] for row in logs[1]]
    assert [row["part"] for row in logs[0]] == ["sight", "sight", "questions", "questions", "questions"]


def test_training_goes_on_from_another_base(tmp_path: Path) -> None:
    base.train_base(None, tmp_path / "first", SETTINGS)
    still = replace(SETTINGS, learning_rate=0.0, seed=3)
    base.train_base(None, tmp_path / "second", still, start=tmp_path / "first")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert "start" in read_provenance(tmp_path / "second")["inputs"]


def test_the_tower_goes_on_learning_what_is_said_beside_questions(tmp_path: Path) -> None:
    still = replace(SETTINGS, learning_rate=0.0, sight_steps=1)
    losses = []
    for weight in (0.0, 1.0, 2.0):
        base.train_base(None, tmp_path / f"{weight}", replace(still, choices=weight))
        rows = read_rows(tmp_path / f"{weight}" / "log.csv")
        losses.append([float(row["loss"]) for row in rows if row["part"] == "questions"])
    # The other losses of the tower count as soon as this one does, and are there once.
    none, once, twice = map(np.array, losses)
    assert (twice - once > 1.0).all() and (once - none > twice - once).all()


def test_a_base_of_another_shape_is_no_start(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tokenizer_texts(0, scenes=20), TINY.vocabulary)
    build_model_folder(tmp_path / "other", replace(TINY, text_layers=1), tokenizer, seed=0)
    with pytest.raises(UsageError, match=r"text_config.num_hidden_layers is 1, nano's is 2"):
        base.train_base(None, tmp_path / "base", SETTINGS, start=tmp_path / "other")


def test_what_was_made_or_begun_otherwise_is_not_taken_up(tmp_path: Path) -> None:
    out, partial = tmp_path / "base", tmp_path / "base.partial"
    (partial / "checkpoint").mkdir(parents=True)
    provenance = Provenance("nano-base", {}, {**asdict(SETTINGS), "shape": describe(TINY)})
    claim(partial, provenance, begun=False)
    with pytest.raises(UsageError, match=r"begun otherwise \(steps was 5 and is 9\)"):
        base.train_base(None, out, replace(SETTINGS, steps=9))
    out.mkdir()
    with pytest.raises(UsageError, match="exists already"):
        base.train_base(None, out, SETTINGS)


def test_labels_of_the_pool_do_not_enter(wm811k: Path, tmp_path: Path) -> None:
    values = dict(np.load(wm811k / "train_pool.npz"))
    values["labels"] = np.random.default_rng(0).permutation(values["labels"])
    np.savez(tmp_path / "permuted.npz", **values)
    pools = [stream.train_side(path) for path in (wm811k / "train_pool.npz", tmp_path / "permuted.npz")]
    assert len(pools[0]) == len(pools[1]) > 20_000
    assert all(np.array_equal(one, other) for one, other in zip(*pools, strict=True))


def test_maps_with_clusters_are_shown_more_often() -> None:
    plain = np.ones((20, 20), dtype=np.uint8)
    marked = plain.copy()
    marked[5:10, 5:10] = 2
    weights = stream.interest([plain, marked])
    assert weights.sum() == pytest.approx(1.0)
    assert weights[1] > 1.3 * weights[0]


def test_the_committed_base_has_4_to_12_million_parameters() -> None:
    weights = load_file(Path(base.__file__).parent / "weights" / "base" / "model.safetensors")
    assert 4e6 < sum(tensor.numel() for tensor in weights.values()) < 12e6


def test_a_base_goes_on_under_another_tokenizer(tmp_path: Path) -> None:
    base.train_base(None, tmp_path / "first", SETTINGS)
    still = replace(SETTINGS, learning_rate=0.0, sight_steps=0, seed=3, said=0.5)
    base.train_base(None, tmp_path / "second", still, start=tmp_path / "first", vocabulary=500)
    old, new = (PreTrainedTokenizerFast.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert len(old) < len(new) <= 500
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    name = "model.language_model.embed_tokens.weight"
    assert all(torch.equal(first[key], second[key]) for key in first if key != name)
    for token, index in new.get_vocab().items():
        spelled = old(token, add_special_tokens=False)["input_ids"]
        if old.convert_tokens_to_ids(token) is not None:
            spelled = [old.convert_tokens_to_ids(token)]
        elif not token.isascii():
            continue  # a leading space is written otherwise in the vocabulary
        wanted = first[name][spelled].float().mean(dim=0)
        torch.testing.assert_close(second[name][index].float(), wanted, rtol=0, atol=2e-4)


def test_wafers_that_descriptions_say_nothing_of_are_asked_about_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "said_turns", lambda *_: [])
    tokenizer = train_tokenizer(tokenizer_texts(0, scenes=20), TINY.vocabulary)
    settings = replace(SETTINGS, sight_steps=0, said=1.0)
    for batch in stream.Conversations([], np.zeros(0), tokenizer, settings):
        assert (batch["labels"] != stream.IGNORED).sum() > 2 * settings.batch
