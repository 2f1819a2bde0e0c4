"""Bundles that generate text: exported from tiny models, asked on the station, compared with transformers."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import wafervlm
from export.stage import ExportConfig, export
from export.weights import Weights
from export.words import words_section
from tests.conftest import SIDES, square_task
from tests.export.test_step import noisy
from train.encoding import encode
from train.loading import load_checkpoint, load_processor
from train.synthetic import wafers as synthetic
from wafervlm.bundle import Bundle, open_bundle
from wafervlm.cli import cli, main
from wafervlm.errors import ClosedError, InputError, PredictionTimeout, ProviderError, TaskError, UsageError
from wafervlm.loading import load_for_words
from wafervlm.model import WaferVLM
from wafervlm.render import render
from wafervlm.task import Order, Task
from wafervlm.wafermap import WaferMap
from wafervlm.words_commands import describe

QUESTIONS = ("Where are the failing dies?", "  How many — 3 or 4? ", "naïve 好 question: a|b {x}")


def config_of(folder: Path, task: Task, **changes: object) -> ExportConfig:
    return ExportConfig(checkpoint=folder, task=task, words=True, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Gives a family's noisy checkpoint and its bundle with words, made when it is first asked for."""

    @functools.cache
    def make(family: str) -> tuple[Path, Path]:
        folder = noisy(tiny_folder(family), tmp_path_factory.mktemp("words") / family)
        export(config_of(folder, square_task(SIDES[family]), context=200), folder.parent / "bundle")
        return folder, folder.parent / "bundle"

    return make


@pytest.fixture(scope="module")
def checkpoint_folder(family: str, made: Callable[[str], tuple[Path, Path]]) -> Path:
    return made(family)[0]


@pytest.fixture(scope="module")
def bundle(family: str, made: Callable[[str], tuple[Path, Path]]) -> Path:
    return made(family)[1]


@pytest.fixture(scope="module")
def qwen3_bundle(made: Callable[[str], tuple[Path, Path]]) -> Path:
    """One family's, for what does not depend on the family."""
    return made("qwen3_vl")[1]


@pytest.fixture
def model(qwen3_bundle: Path) -> WaferVLM:
    return wafervlm.load(qwen3_bundle, threads=1)


@pytest.fixture(scope="module")
def wafer() -> WaferMap:
    return synthetic(["Scratch"], seed=4)[0]


def generated(folder: Path, task: Task, question: str, wafer: WaferMap, count: int) -> list[int]:
    """What transformers' greedy generate says."""
    checkpoint = load_checkpoint(folder)
    asked = replace(task, prompt=question.strip())
    inputs = encode(checkpoint, asked, [render(wafer, task.render)])
    with torch.inference_mode():
        whole = checkpoint.model.generate(**inputs, max_new_tokens=count, do_sample=False)
    return list(whole[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_is_token_for_token_that_of_transformers(
    family: str, checkpoint_folder: Path, bundle: Path, question: str, wafer: WaferMap
) -> None:
    wanted = generated(checkpoint_folder, square_task(SIDES[family]), question, wafer, 40)
    with wafervlm.load(bundle, threads=1) as model:
        said = model.describe(wafer, question, max_tokens=40, check=False)
    assert list(said.tokens) == wanted
    assert len(set(wanted)) > 3  # not one word again and again
    processor = load_processor(checkpoint_folder)
    assert said.text == processor.tokenizer.decode(wanted, skip_special_tokens=True)
    assert said.finish == ("stop" if wanted[-1] in model.manifest.words.stop else "length")  # type: ignore[union-attr]


def test_a_repetition_penalty_of_the_checkpoint_holds(
    tiny_folder: Callable[[str], Path], tmp_path: Path, wafer: WaferMap
) -> None:
    folder = noisy(tiny_folder("qwen2_5_vl"), tmp_path / "noisy")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))
    task = square_task(84)
    export(config_of(folder, task), tmp_path / "bundle")
    wanted = generated(folder, task, QUESTIONS[0], wafer, 30)
    with wafervlm.load(tmp_path / "bundle", threads=1) as model:
        assert list(model.describe(wafer, QUESTIONS[0], max_tokens=30).tokens) == wanted


def test_the_bundle_says_what_was_measured_and_classifies_as_before(
    family: str, checkpoint_folder: Path, bundle: Path, tmp_path: Path, wafer: WaferMap
) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.parity["words_max_abs_difference"] < 1e-4
    assert {"features.onnx", "step.onnx", "tokenizer.json", "model.onnx.data"} <= {
        entry.path for entry in opened.manifest.files
    }
    export(ExportConfig(checkpoint=checkpoint_folder, task=square_task(SIDES[family])), tmp_path / "without")
    with wafervlm.load(bundle, threads=1) as one, wafervlm.load(tmp_path / "without", threads=1) as other:
        assert other.manifest.words is None
        assert "words" not in other.manifest.to_json()
        assert one.predict(wafer).scores == pytest.approx(other.predict(wafer).scores, abs=1e-6)
        with pytest.raises(UsageError, match="exported without words"):
            other.describe(wafer, "Where?")
    # The weights are there once: all three graphs and the tokenizer are small beside them.
    small = sum(e.size for e in opened.manifest.files if e.path.endswith(".onnx"))
    assert small < 0.5 * next(e.size for e in opened.manifest.files if e.path == "model.onnx.data")


@pytest.mark.parametrize("order", ["text-first", "image-first"])
@pytest.mark.parametrize("system", [None, "You look at wafers."])
def test_the_template_is_filled_in_as_the_checkpoint_has_it(
    family: str, tiny_folder: Callable[[str], Path], order: Order, system: str | None
) -> None:
    folder = tiny_folder(family)
    processor = load_processor(folder)
    task = replace(square_task(SIDES[family]), order=order, system=system)
    words = words_section(Weights(folder), processor, task)
    asked = replace(task, prompt="Is there a ring?")
    wanted = processor.tokenizer.apply_chat_template(
        asked.messages(), tokenize=False, add_generation_prompt=True
    )
    first, second = "Is there a ring?", "<|image_pad|>"
    if order == "image-first":
        first, second = second, first
    assert words.opening + first + words.middle + second + words.closing == wanted
    assert words.context == 4096


def test_a_template_that_rewrites_the_question_is_refused(tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("qwen3_vl")
    processor = load_processor(folder)
    processor.tokenizer.chat_template = processor.tokenizer.chat_template.replace(
        "part.text }}", "part.text | lower }}"
    )
    with pytest.raises(TaskError, match="question and image once each, as they are"):
        words_section(Weights(folder), processor, square_task(64))


def test_pieces_come_one_by_one_and_make_up_the_text(model: WaferVLM, wafer: WaferMap) -> None:
    whole = model.describe(wafer, "Where?", max_tokens=30, check=False)
    stream = model.describe_stream(wafer, "Where?", max_tokens=30)
    with pytest.raises(ClosedError, match="not ended"):
        _ = stream.result
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == stream.result.text == whole.text
    assert stream.result == whole
    assert {"image", "prompt", "answer", "total"} <= stream.result.timing_ms.keys()
    assert whole.tokens_per_second > 0
    assert whole.runtime == "onnx on cpu"


def test_drawing_is_the_same_for_the_same_seed(model: WaferVLM, wafer: WaferMap) -> None:
    drawn = [
        model.describe(wafer, "Where?", max_tokens=20, temperature=1.5, seed=seed).tokens
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = model.describe(wafer, "Where?", max_tokens=20)
    assert model.describe(wafer, "Where?", max_tokens=20, temperature=2.0, top_k=1).tokens == greedy.tokens


def test_threads_share_a_model(model: WaferVLM) -> None:
    shown = synthetic(["Center", "Scratch", "Edge-Ring", "Donut"], seed=8)
    alone = [model.describe(each, "Where?", max_tokens=15).tokens for each in shown]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda each: model.describe(each, "Where?", max_tokens=15).tokens, shown * 3)
        )
    assert together == alone * 3
    assert len(set(alone)) > 1


def test_the_context_ends_an_answer_and_bounds_a_question(model: WaferVLM, wafer: WaferMap) -> None:
    short = model.describe(wafer, "Where?", max_tokens=1)
    room = 200 - short.prompt_tokens
    said = model.describe(wafer, "Where?", max_tokens=500)
    assert (said.finish, len(said.tokens)) in {("length", room), ("stop", len(said.tokens))}
    with pytest.raises(
        InputError, match=r"makes \d+ tokens with the image, and this bundle reads at most 200"
    ):
        model.describe(wafer, "Where? " * 200)


def test_an_answer_can_be_stopped(model: WaferVLM, wafer: WaferMap) -> None:
    asked = iter([False] * 5)
    said = model.describe(wafer, "Where?", cancelled=lambda: next(asked, True))
    assert said.finish == "cancelled"
    # One question before the image, one before the prompt, one before each further token.
    assert len(said.tokens) == 4
    with model.describe_stream(wafer, "Where?") as stream:
        first = next(stream)
    assert stream.result.finish == "cancelled"
    assert stream.result.text.startswith(first)
    assert list(stream) == []
    stream.close()


def test_closing_in_another_thread_ends_it(model: WaferVLM, wafer: WaferMap) -> None:
    stream = model.describe_stream(wafer, "Where?")
    next(stream)
    closing = threading.Thread(target=stream.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert stream.result.finish == "cancelled"


def test_a_timeout_ends_it_and_the_model_goes_on(model: WaferVLM, wafer: WaferMap) -> None:
    model.describe(wafer, "Where?", max_tokens=1)
    stream = model.describe_stream(wafer, "Where?", timeout=0.5)
    next(stream)
    time.sleep(0.6)
    with pytest.raises(PredictionTimeout, match="stopped at its timeout"):
        for _ in stream:
            pass
    with pytest.raises(PredictionTimeout):
        model.describe(wafer, "Where?", timeout=1e-6)
    assert model.describe(wafer, "Where?", max_tokens=2).tokens


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"question": "  "}, "it must be text"),
        ({"question": 7}, "it must be text"),
        ({"question": "a<|im_end|>b"}, "a mark of the chat template"),
        ({"question": "\ud800"}, "half a character"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1}, "temperature must be"),
        ({"temperature": 1, "top_p": 0}, "top_p must be"),
        ({"seed": 3}, "do nothing at temperature 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"cancelled": True}, "must be a function"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    model: WaferVLM, wafer: WaferMap, arguments: dict[str, object], says: str
) -> None:
    question = arguments.pop("question", "Where?")
    with pytest.raises(UsageError, match=says):
        model.describe(wafer, question, **arguments)  # type: ignore[arg-type]


def test_a_closed_model_says_nothing(model: WaferVLM, wafer: WaferMap) -> None:
    model.close()
    with pytest.raises(ClosedError):
        model.describe(wafer, "Where?")


def test_the_command_prints_the_text_and_settings_apart(
    qwen3_bundle: Path, wafer: WaferMap, tmp_path: Path
) -> None:
    np.save(tmp_path / "map.npy", wafer.dies)
    with wafervlm.load(qwen3_bundle, threads=1) as model:
        wanted = model.describe(wafer, "Where?", max_tokens=12).text
    arguments = [str(tmp_path / "map.npy"), "Where?", "--bundle", str(qwen3_bundle), "--max-tokens", "12"]
    done = CliRunner().invoke(describe, [*arguments, "--threads", "1"], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == wanted + "\n"
    assert "max_tokens" in done.stderr and "12 tokens in" in done.stderr
    done = CliRunner().invoke(describe, [*arguments, "--json"], catch_exceptions=False)
    values = json.loads(done.stdout)
    assert (values["text"], values["question"], values["finish"]) == (wanted, "Where?", "length")


def test_the_command_opens_the_graphs_for_words_alone_and_says_on_what(
    qwen3_bundle: Path, wafer: WaferMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wafervlm.runtimes.onnx as module

    np.save(tmp_path / "map.npy", wafer.dies)
    opened: list[str] = []
    real = module.open_session

    def noted(bundle: Bundle, file: str, **options: object) -> object:
        opened.append(file)
        return real(bundle, file, **options)  # type: ignore[arg-type]

    for user in ("wafervlm.runtimes.onnx", "wafervlm.words.onnx_steps"):
        monkeypatch.setattr(f"{user}.open_session", noted)
    arguments = ["describe", str(tmp_path / "map.npy"), "Where?", "--bundle", str(qwen3_bundle)]
    done = CliRunner().invoke(cli, [*arguments, "--max-tokens", "2", "--threads", "1"])
    assert (done.exit_code, sorted(opened)) == (0, ["features.onnx", "step.onnx"])
    assert "2 tokens" in done.stderr and "onnx on cpu" in done.stderr
    assert "nothing in it could be checked" in done.stderr
    with load_for_words(qwen3_bundle, threads=1) as model, wafervlm.load(qwen3_bundle, threads=1) as other:
        assert model.predict(wafer).scores == other.predict(wafer).scores
    with pytest.raises(ClosedError):
        model.predict(wafer)
    if "CUDAExecutionProvider" not in module.import_onnxruntime().get_available_providers():
        assert main([*arguments, "--runtime", "onnx-cuda"]) == ProviderError.exit_code


def test_help_has_examples() -> None:
    text = CliRunner().invoke(describe, ["--help"]).stdout
    assert 'wafervlm describe map.npy "Where is the largest cluster?" --bundle bundle/' in text


def test_nano_is_token_for_token_that_of_transformers(tmp_path: Path) -> None:
    from export.nano import TASK, WEIGHTS

    out = tmp_path / "bundle"
    export(config_of(WEIGHTS / "base", TASK, golden_maps=1), out)
    shown = synthetic(["Edge-Ring", "Scratch"], seed=2)
    with wafervlm.load(out, threads=1) as model:
        for wafer, question in zip(
            shown, ("Failing share on a five by five grid?", "Where is the largest cluster?"), strict=True
        ):
            wanted = generated(WEIGHTS / "base", TASK, question, wafer, 60)
            said = model.describe(wafer, question, max_tokens=60)
            assert list(said.tokens) == wanted
            assert said.finish == "stop"
