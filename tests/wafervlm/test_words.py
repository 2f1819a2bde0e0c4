"""Generating text: choosing tokens, pieces of text, and what a manifest says of it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.conftest import ROOT
from wafervlm.bundle import Bundle, Manifest, open_bundle, write_manifest
from wafervlm.errors import FileSetError, ManifestError, MissingDependencyError, UsageError
from wafervlm.words.description import Description
from wafervlm.words.sampling import Chooser, Sampling, penalised, probabilities
from wafervlm.words.section import Words
from wafervlm.words.text import Language, Pieces, lay_out

REAL = ROOT.parent / "shared" / "models" / "qwen3-vl-4b" / "tokenizer.json"
WORDS = Words("<s>", "<i>", "<a>", image_token=9, grid=(2, 3), stop=(1, 2), context=50)
TEXTS = ("Where?", "naïve — 好的，晶圆。", "👩‍🔬 at 3 o'clock", "\ufffd kept", " two  spaces ", "é" * 9)


class Decoder:
    """What Pieces need of a Language."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def pieces_of(tokenizer: Any, ids: list[int]) -> list[str]:
    pieces = Pieces(Decoder(tokenizer))  # type: ignore[arg-type]
    return [*(pieces.add(token) for token in ids), pieces.rest()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """nano's, whose tokens are mostly single bytes."""
    return Tokenizer.from_file(str(ROOT / "train" / "nano" / "weights" / "base" / "tokenizer.json"))


@pytest.fixture(scope="module")
def real_tokenizer() -> Any:
    if not REAL.is_file():
        pytest.skip(f"no real tokenizer at {REAL}")
    return Tokenizer.from_file(str(REAL))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["tokenizer", "real_tokenizer"])
def test_no_piece_ends_in_half_a_character(text: str, which: str, request: pytest.FixtureRequest) -> None:
    used = request.getfixturevalue(which)
    ids = used.encode(text, add_special_tokens=False).ids
    pieces = pieces_of(used, ids)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert len(ids) < 3 or sum(map(bool, pieces)) > 1


@given(ids=st.lists(st.integers(0, 490), max_size=40))
@settings(deadline=None, max_examples=300)
def test_pieces_make_up_the_text_whatever_the_tokens(tokenizer: Any, ids: list[int]) -> None:
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def transformers_probabilities(logits: torch.Tensor, sampling: Sampling) -> np.ndarray[Any, Any]:
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits[None].double())
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    found: np.ndarray[Any, Any] = scores.softmax(-1)[0].numpy()
    return found


@pytest.mark.parametrize("top_k", [0, 1, 5, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-6])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_probabilities_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3)) * 3
    if top_p == 1:
        logits[7] = logits[8] = logits.topk(5).values[-1]  # a tie at the fifth place; all of it is kept
    sampling = Sampling(temperature, top_k, top_p)
    got = probabilities(logits.numpy(), sampling)
    np.testing.assert_allclose(got, transformers_probabilities(logits, sampling), atol=1e-12)


def test_drawn_tokens_are_as_likely_as_they_should_be() -> None:
    logits, sampling = np.array([2.0, 1.0, 0.0, -1.0, -9.0]), Sampling(1.0, top_k=3, seed=0)
    chooser = Chooser(sampling, [])
    counts = np.bincount([chooser.choose(logits) for _ in range(4000)], minlength=5)
    assert counts[3:].sum() == 0
    np.testing.assert_allclose(counts / 4000, probabilities(logits, sampling), atol=0.03)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits, seen = torch.randn(40, generator=torch.Generator().manual_seed(1)), [0, 3, 3, 39]
    wanted = RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([seen]), logits[None].clone())[0]
    before = logits.numpy().copy()
    np.testing.assert_allclose(penalised(logits.numpy(), seen, 1.4), wanted.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(logits.numpy(), before)
    chooser = Chooser(Sampling(), [], penalty=5.0)
    assert [chooser.choose(np.array([1.0, 0.9, 0.8])) for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": True},
        {"temperature": 1, "top_k": -1},
        {"temperature": 1, "top_k": 2.5},
        {"temperature": 1, "top_p": 1.1},
        {"temperature": 1, "seed": -1},
        {"top_p": 0.5},
    ],
)
def test_sampling_that_cannot_be_meant(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**values)


def test_positions_of_image_and_text() -> None:
    laid = lay_out([5, 6, 9, 7], WORDS)
    assert laid.ids == (5, 6, 9, 9, 9, 9, 9, 9, 7)
    assert laid.rows.tolist() == [6, 6, 0, 1, 2, 3, 4, 5, 6]
    assert laid.positions[2:8].tolist() == [[2, 2 + r, 2 + c] for r in (0, 1) for c in (0, 1, 2)]
    assert laid.positions[8].tolist() == [5, 5, 5]
    assert laid.next_position == 6


@pytest.mark.parametrize(
    "change, says",
    [
        ({"opening": 3}, "opening of words is 3"),
        ({"image_token": -1}, "image_token"),
        ({"image_token": True}, "image_token"),
        ({"grid": [1]}, "grid"),
        ({"grid": [0, 2]}, "grid"),
        ({"stop": []}, "stop"),
        ({"stop": ["a"]}, "stop"),
        ({"context": 0}, "context"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_a_section_is_read_strictly(change: dict[str, Any], says: str) -> None:
    values = WORDS.to_dict()
    assert Words.from_dict(values, "here") == WORDS
    with pytest.raises(ManifestError, match=says):
        Words.from_dict(values | change, "here")
    for key in values:
        with pytest.raises(ManifestError, match=f"lacks the key '{key}'"):
            Words.from_dict({k: v for k, v in values.items() if k != key}, "here")
    with pytest.raises(ManifestError, match="must be a table"):
        Words.from_dict([], "here")


def test_a_manifest_carries_its_words_and_needs_their_files(toy_bundle: Path) -> None:
    manifest = open_bundle(toy_bundle).manifest
    assert manifest.words is None
    with pytest.raises(FileSetError, match="does not list 'features.onnx'"):
        write_manifest(toy_bundle, replace(manifest, words=WORDS))
    for name in WORDS.files:
        shutil.copyfile(toy_bundle / "model.onnx", toy_bundle / name)
    write_manifest(toy_bundle, replace(manifest, words=WORDS))
    assert open_bundle(toy_bundle).manifest.words == WORDS
    text = (toy_bundle / "manifest.json").read_text(encoding="utf-8")
    (toy_bundle / "manifest.json").write_text(text.replace('"context": 50', '"context": null'))
    with pytest.raises(ManifestError, match="context of words is None"):
        open_bundle(toy_bundle)


def open_again(folder: Path, words: Words) -> Bundle:
    """The bundle in ``folder`` after its files and words were changed."""
    manifest = Manifest.from_json((folder / "manifest.json").read_bytes())
    write_manifest(folder, replace(manifest, words=words))
    return open_bundle(folder)


def with_tokenizer(folder: Path, text: str) -> tuple[Bundle, Words]:
    for name in WORDS.files:
        shutil.copyfile(folder / "model.onnx", folder / name)
    (folder / WORDS.tokenizer).write_text(text, encoding="utf-8")
    return open_again(folder, WORDS), WORDS


def test_a_tokenizer_that_does_not_fit_is_refused(toy_bundle: Path, tokenizer: Any) -> None:
    bundle, words = with_tokenizer(toy_bundle, "{}")
    with pytest.raises(ManifestError, match="cannot be read by this version of tokenizers"):
        Language(bundle, words)
    (toy_bundle / WORDS.tokenizer).write_text(tokenizer.to_str(), encoding="utf-8")
    bundle = open_again(toy_bundle, words)
    with pytest.raises(ManifestError, match="no mark for the image under the id 9"):
        Language(bundle, words)
    image = tokenizer.token_to_id("<|image_pad|>")
    words = replace(words, image_token=image)
    assert Language(open_again(toy_bundle, words), words).prompt("Where?").ids.count(image) == 6


def test_without_tokenizers_it_says_what_to_install(
    toy_bundle: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, words = with_tokenizer(toy_bundle, tokenizer.to_str())
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wafervlm\[words\]'"):
        Language(bundle, words)


def test_a_description_shows_itself() -> None:
    said = Description("Two.", "How many?", (4, 1), "stop", 60, {"image": 10.0, "answer": 10.0}, id="w")
    assert (str(said), said.tokens_per_second) == ("Two.", 100.0)
    assert repr(said) == "<Description 'w' 'Two.', stop, 100 tokens/s>"
    assert said.to_dict()["tokens"] == [4, 1]
    assert said == replace(said, timing_ms={})
