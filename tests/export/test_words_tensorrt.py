"""Words on an engine: the runner's tokens are those of ONNX Runtime, and what it refuses.

No TensorRT runs here. The stand-ins of fake_words.py compute the bundle's own graphs on the memory that the
runner lays out, and refuse what TensorRT would.
"""

from __future__ import annotations

import gc
import itertools
import json
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import wafervlm
from export.nano import TASK, WEIGHTS
from export.stage import ExportConfig, export
from tests.wafervlm.fake_tensorrt import FakeContext, FakeEngine, fake_library, install
from tests.wafervlm.fake_words import GraphEngine, QueueCuda
from tests.wafervlm.test_engine import manifest_of
from train.synthetic import wafers as synthetic
from wafervlm import cli
from wafervlm.bundle import Bundle, open_bundle
from wafervlm.engine import Engine, open_engine, write_engine_manifest, write_file, writing_engine
from wafervlm.engine_words import FEATURES_ENGINE, STEP_ENGINE, GoldenText, WordsEngines
from wafervlm.errors import (
    ClosedError,
    DeviceLost,
    DigestError,
    ManifestError,
    PredictionTimeout,
    ProviderError,
    ResourceError,
    UsageError,
    VerificationError,
    WaferVLMWarning,
)
from wafervlm.loading import load_for_words
from wafervlm.model import WaferVLM
from wafervlm.runtimes.tensorrt_package import Messages
from wafervlm.wafermap import WaferMap
from wafervlm.words.acceptance import golden_texts
from wafervlm.words.section import Words
from wafervlm.words.tensorrt_build import pasts, step_profiles

VERSION = "1.7.1.116"
QUESTIONS = ("Where is the largest cluster?", "What share of the dies fails? Where are they?")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """nano's base, whose keys are 512 bytes a token."""
    out = tmp_path_factory.mktemp("words") / "bundle"
    export(ExportConfig(checkpoint=WEIGHTS / "base", task=TASK, words=True, golden_maps=2, context=300), out)
    return open_bundle(out)


@pytest.fixture(scope="module")
def words(bundle: Bundle) -> Words:
    assert bundle.manifest.words is not None
    return bundle.manifest.words


@pytest.fixture(scope="module")
def golden(bundle: Bundle, words: Words) -> tuple[GoldenText, ...]:
    return golden_texts(bundle, words)


@pytest.fixture(scope="module")
def wafer() -> WaferMap:
    return synthetic(["Scratch"], seed=4)[0]


class Station:
    """A machine with a stand-in GPU, and an engine folder with words."""

    def __init__(
        self,
        bundle: Bundle,
        words: Words,
        golden: tuple[GoldenText, ...],
        folder: Path,
        patch: pytest.MonkeyPatch,
        builder: str,
        max_prompt: int = 128,
    ) -> None:
        self.bundle, self.words, self.folder, self.builder = bundle, words, folder, builder
        self.messages, self.cuda = Messages(), QueueCuda()
        scores = np.full(len(TASK.labels), -np.log(len(TASK.labels)), np.float32)
        classify = FakeEngine(FakeContext(scores, self.messages), TASK.render.height, 16)
        self.features = GraphEngine(bundle, words.features, self.cuda, self.messages)
        graph = onnx.load(bundle.path / words.step, load_external_data=False).graph
        shapes = {t.name: [d.dim_value for d in t.type.tensor_type.shape.dim] for t in graph.input}
        widths = {name: shape[-1] for name, shape in shapes.items() if name.startswith("past_")}
        profiles = step_profiles(widths, words, max_prompt)
        whole = tuple(shapes["features"])
        for each in profiles:
            each["features"] = (whole, whole, whole)
        self.features.shapes_elsewhere = {"features": whole}
        self.step = GraphEngine(bundle, words.step, self.cuda, self.messages, profiles)
        engines = {b"engine": classify, b"features": self.features, b"step": self.step}
        with writing_engine(folder) as work:
            made = WordsEngines(
                write_file(work, b"features", FEATURES_ENGINE),
                write_file(work, b"step", STEP_ENGINE),
                max_prompt,
                words.context,
                golden,
            )
            file = write_file(work, b"engine")
            write_engine_manifest(work, manifest_of(bundle, builder=builder, file=file, words=made))
        install(patch, fake_library(builder, VERSION, engines, self.messages), self.cuda)

    def open(self, **options: Any) -> WaferVLM:
        return load_for_words(self.bundle.path, engine=self.folder, **options)

    def change(self, **changes: Any) -> None:
        """Write the manifest with other words."""
        manifest = open_engine(self.folder, self.bundle).manifest
        assert manifest.words is not None
        write_engine_manifest(self.folder, replace(manifest, words=replace(manifest.words, **changes)))


@pytest.fixture
def builder() -> str:
    return "tensorrt_rtx"


@pytest.fixture
def station(
    bundle: Bundle,
    words: Words,
    golden: tuple[GoldenText, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    builder: str,
) -> Station:
    monkeypatch.setattr(Engine, "is_writable", False)
    return Station(bundle, words, golden, tmp_path / "engine", monkeypatch, builder)


@pytest.fixture
def model(station: Station) -> Iterator[WaferVLM]:
    with station.open() as opened:
        yield opened
    assert not station.cuda.memory, "not all memory of the device was given back"


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Iterator[WaferVLM]:
    with load_for_words(bundle.path, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("builder", ["tensorrt_rtx", "tensorrt"])
def test_tokens_are_those_of_onnx_runtime(
    model: WaferVLM, reference: WaferVLM, wafer: WaferMap, station: Station
) -> None:
    for question in QUESTIONS:
        wanted = reference.describe(wafer, question, max_tokens=40)
        said = model.describe(wafer, question, max_tokens=40)
        assert (said.tokens, said.text, said.finish) == (wanted.tokens, wanted.text, wanted.finish)
        assert len(set(said.tokens)) > 5
        assert said.runtime == "tensorrt on Fake GPU"
    drawn, wanted = (
        each.describe(wafer, "Where?", max_tokens=30, temperature=1.3, seed=5) for each in (model, reference)
    )
    assert drawn.tokens == wanted.tokens


def test_nothing_comes_back_from_the_device_but_logits(
    model: WaferVLM, wafer: WaferMap, station: Station
) -> None:
    before, executed = station.cuda.copied_back, [c.executed for c in station.step.contexts]
    said = model.describe(wafer, QUESTIONS[0], max_tokens=20)
    count = len(said.tokens)
    assert count > 5
    (logits,) = station.step.get_tensor_shape("logits")[1:]
    assert station.cuda.copied_back - before == 4 * logits * count
    # Each profile has a context of its own: the prompt at once, then word by word.
    ran = [c.executed - n for c, n in zip(station.step.contexts, executed, strict=True)]
    assert ran == [1, count - 1]
    assert [c.profile for c in station.step.contexts] == [0, 1]


def test_a_longer_prompt_than_is_read_at_once(
    station: Station,
    bundle: Bundle,
    words: Words,
    golden: tuple[GoldenText, ...],
    reference: WaferVLM,
    wafer: WaferMap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = Station(bundle, words, golden, tmp_path / "short", monkeypatch, station.builder, max_prompt=30)
    with short.open() as model:
        said = model.describe(wafer, QUESTIONS[0], max_tokens=12)
    assert said.prompt_tokens > 30
    assert said.tokens == reference.describe(wafer, QUESTIONS[0], max_tokens=12).tokens


def test_threads_share_one_engine(model: WaferVLM, reference: WaferVLM) -> None:
    shown = synthetic(["Center", "Scratch", "Edge-Ring", "Donut"], seed=8)
    wanted = [reference.describe(each, QUESTIONS[0], max_tokens=12).tokens for each in shown]
    found: dict[int, Any] = {}

    def ask(index: int) -> None:
        found[index] = model.describe(shown[index % 4], QUESTIONS[0], max_tokens=12).tokens

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(8)] == wanted * 2
    assert len(set(wanted)) > 1


def test_it_is_ended_by_time_and_on_request(model: WaferVLM, wafer: WaferMap, station: Station) -> None:
    turns = itertools.count()
    said = model.describe(wafer, QUESTIONS[0], cancelled=lambda: next(turns) > 4)
    assert (said.finish, len(said.tokens)) == ("cancelled", 4)
    with model.describe_stream(wafer, QUESTIONS[0]) as stream:
        first = next(stream)
    assert stream.result.finish == "cancelled"
    assert stream.result.text.startswith(first)
    station.cuda.busy = True
    with pytest.raises(PredictionTimeout, match="stopped at its timeout"):
        model.describe(wafer, QUESTIONS[0], timeout=0.2)
    stream = model.describe_stream(wafer, QUESTIONS[0])
    asking = threading.Thread(target=lambda: list(stream))
    asking.start()
    stream._run.cancel()
    asking.join(10)
    assert not asking.is_alive() and stream.result.finish == "cancelled"
    station.cuda.busy = False
    assert model.describe(wafer, QUESTIONS[0], max_tokens=3).finish == "length"


def test_an_answer_that_is_dropped_gives_its_memory_back(
    model: WaferVLM, wafer: WaferMap, station: Station
) -> None:
    model.describe(wafer, QUESTIONS[0], max_tokens=1)
    held = len(station.cuda.memory)
    stream = model.describe_stream(wafer, QUESTIONS[0])
    next(stream)
    assert len(station.cuda.memory) == held + 1
    del stream
    gc.collect()
    assert len(station.cuda.memory) == held


def test_a_model_that_is_dropped_gives_its_memory_back(station: Station, wafer: WaferMap) -> None:
    model = station.open()
    assert model.describe(wafer, "Where?", max_tokens=2).tokens
    assert station.cuda.memory
    del model
    gc.collect()
    assert not station.cuda.memory
    assert station.cuda.calls.count("cudaStreamDestroy") == 1


def test_a_closed_model_ends_answers_under_way(station: Station, wafer: WaferMap) -> None:
    model = station.open()
    stream = model.describe_stream(wafer, QUESTIONS[0])
    next(stream)
    model.close()
    with pytest.raises(ClosedError):
        list(stream)
    assert not station.cuda.memory


def test_a_full_memory_ends_one_answer_and_no_more(
    model: WaferVLM, wafer: WaferMap, station: Station
) -> None:
    station.cuda.fail["cudaMalloc"] = "cudaErrorMemoryAllocation"
    with pytest.raises(ResourceError, match=r"tokens of keys and values need \d+ MB; ask for fewer"):
        model.describe(wafer, QUESTIONS[0])
    station.cuda.fail.clear()
    station.step.contexts[1].refuse = "Error Code 2: OutOfMemory"
    with pytest.raises(ResourceError, match="memory is full.*--max-prompt"):
        model.describe(wafer, QUESTIONS[0])
    station.step.contexts[1].refuse = "Error Code 1: Myelin"
    with pytest.raises(ProviderError, match="could not run: Error Code 1: Myelin.*--runtime onnx"):
        model.describe(wafer, QUESTIONS[0])
    station.step.contexts[1].refuse = ""
    assert model.describe(wafer, QUESTIONS[0], max_tokens=3).tokens


def test_a_gpu_that_disappears_ends_the_engine_not_the_process(
    station: Station, reference: WaferVLM, wafer: WaferMap
) -> None:
    model = station.open()
    station.cuda.fail["cudaStreamSynchronize"] = "cudaErrorLaunchFailure"
    with pytest.raises(DeviceLost, match="stopped answering"):
        model.describe(wafer, QUESTIONS[0])
    station.cuda.fail.clear()
    with pytest.raises(DeviceLost):
        model.describe(wafer, QUESTIONS[0])
    model.close()
    assert reference.describe(wafer, QUESTIONS[0], max_tokens=2).tokens


def test_no_memory_for_a_profile(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.wafervlm.fake_words.GraphContext.set_optimization_profile_async", lambda *_: False
    )
    with pytest.raises(ResourceError, match="--max-prompt"):
        station.open()
    assert not station.cuda.memory


def test_words_that_are_off_are_refused(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image of another wafer, keys that are forgotten, a token that is made likelier."""

    def other(found: dict[str, Any]) -> None:
        found["features"] = np.roll(found["features"], 7, axis=1)

    def forgotten(found: dict[str, Any]) -> None:
        for name in found:
            if name != "logits":
                found[name] = np.zeros_like(found[name])

    def likelier(found: dict[str, Any]) -> None:
        found["logits"][0, 7] = found["logits"].max() + 2

    def nan(found: dict[str, Any]) -> None:
        found["logits"][0, 7] = np.nan

    station.open().close()
    changes = ((station.features, other), *((station.step, f) for f in (forgotten, likelier, nan)))
    for engine, change in changes:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "change", change)
            with pytest.raises(VerificationError, match="are not those of its bundle on Fake GPU"):
                station.open()
        assert not station.cuda.memory
    station.change(golden=(GoldenText(((90_000,),), ((-0.1,),)),))
    with pytest.raises(ManifestError, match="golden texts of another bundle"):
        station.open()


def test_verify_runs_both_and_only_then_words_are_taken(
    station: Station, wafer: WaferMap, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "is_writable", True)
    with pytest.raises(VerificationError, match="before their first use run: wafervlm verify --bundle"):
        station.open()
    monkeypatch.setattr("wafervlm.verification.PROBABILITY_TOLERANCE", 2.0)  # classify's is canned
    monkeypatch.setattr("wafervlm.verification.AGREEMENT", 0.0)
    manifest = open_engine(station.folder, station.bundle).manifest
    write_engine_manifest(station.folder, replace(manifest, tolerance=100.0))
    command = ["verify", "--bundle", str(station.bundle.path), "--engine", str(station.folder), "--json"]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["words"]["max_abs_difference"] < 1e-5
    assert (found["words"]["token_agreement"], found["words"]["tokens"]) == (1.0, 24)
    with station.open() as model:
        assert model.describe(wafer, "Where?", max_tokens=2).runtime == "tensorrt on Fake GPU"
    with wafervlm.load(station.bundle.path, engine=station.folder) as model:
        assert model.describe(wafer, "Where?", max_tokens=2).runtime == "tensorrt on Fake GPU"
    assert not station.cuda.memory
    # Another engine in the same place was not what came out.
    write_file(station.folder, b"step ", STEP_ENGINE)
    with pytest.raises(DigestError):
        station.open()


@pytest.mark.parametrize("change", [{"max_prompt": 99}, {"context": 4096}])
def test_engines_of_other_words(station: Station, change: dict[str, int]) -> None:
    station.change(**change)
    with pytest.raises(ManifestError, match="do not take and give what its bundle's ask for.*--words"):
        station.open()


def without_words(station: Station) -> None:
    manifest = open_engine(station.folder, station.bundle).manifest
    for name in (FEATURES_ENGINE, STEP_ENGINE):
        (station.folder / name).unlink()
    write_engine_manifest(station.folder, replace(manifest, words=None))


def test_an_engine_without_words_says_so(
    station: Station, wafer: WaferMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_words(station)
    with pytest.raises(UsageError, match="only classifies.*wafervlm engine --bundle .* --words, or describe"):
        station.open()
    monkeypatch.setattr("wafervlm.verification.needs_verification", lambda *_: False)
    with wafervlm.load(station.bundle.path, engine=station.folder) as model:
        with pytest.raises(UsageError, match="only classifies"):
            model.describe(wafer, "Where?")
        assert len(model.predict(wafer).scores) == len(TASK.labels)


def test_auto_says_what_it_took_and_why(
    station: Station, wafer: WaferMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with station.open(runtime="auto") as model:
        assert model.runtime == "tensorrt on Fake GPU (the engine runs on Fake GPU (compute capability 8.9))"
        assert model.describe(wafer, "Where?", max_tokens=1).runtime == model.runtime
    without_words(station)
    with pytest.warns(WaferVLMWarning, match="engine .* is not used: runtime auto is onnx"):
        model = station.open(runtime="auto", threads=1)
    assert model.runtime.startswith("onnx on cpu (not tensorrt: engine ")
    assert "only classifies" in model.runtime and "--words" in model.runtime
    monkeypatch.setattr("wafervlm.verification.needs_verification", lambda *_: False)
    with wafervlm.load(station.bundle.path, engine=station.folder, runtime="auto", threads=1) as model:
        assert model.runtime.startswith("tensorrt (")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WaferVLMWarning)
            said = model.describe(wafer, "Where?", max_tokens=1)
        assert said.runtime.startswith("onnx on cpu (not tensorrt: ")


def test_the_command_describes_on_the_engine(
    station: Station, wafer: WaferMap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "map.npy", wafer.dies)
    command = ["describe", str(tmp_path / "map.npy"), "Where?", "--bundle", str(station.bundle.path)]
    command += ["--max-tokens", "4"]
    assert cli.main([*command, "--threads", "1"]) == 0
    wanted = capsys.readouterr().out
    assert cli.main([*command, "--engine", str(station.folder)]) == 0
    told = capsys.readouterr()
    assert told.out == wanted
    assert "tensorrt on Fake GPU" in told.err
    assert cli.main([*command, "--engine", str(station.folder), "--runtime", "onnx"]) == 2
    assert cli.main([*command, "--runtime", "tensorrt"]) == 2
    assert "name one (--engine), or build it: wafervlm engine" in capsys.readouterr().err
    # What classifies is opened when it is asked for, and must come out then.
    with (
        station.open() as model,
        pytest.raises(VerificationError, match="does not reproduce the golden maps"),
    ):
        model.predict(wafer)
    assert not station.cuda.memory


def test_a_station_without_words_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: Bundle
) -> None:
    arguments = ["engine", "-o", str(tmp_path / "e"), "--bundle", str(bundle.path)]
    assert cli.main([*arguments, "--max-prompt", "9"]) == 2
    assert "add --words" in capsys.readouterr().err
    assert cli.main([*arguments, "--words", "--max-prompt", "301"]) == 2
    assert "at most 300 tokens" in capsys.readouterr().err


@pytest.mark.tensorrt
def test_an_engine_with_words_is_built_ahead_of_time(
    bundle: Bundle, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install tensorrt-rtx")
    out = tmp_path / "engine"
    command = ["engine", "--bundle", str(bundle.path), "--target", "rtx:8.9", "-o", str(out), "--json"]
    assert cli.main([*command, "--words"]) == 0
    assert "prompts of up to 300 tokens at once" in capsys.readouterr().err
    engine = open_engine(out, bundle)
    made = engine.manifest.words
    assert made is not None and (made.max_prompt, made.context) == (300, 300)
    assert all(len(engine.read(entry)) == entry.size > 100_000 for entry in engine.manifest.files)
    assert len(made.golden) == 2 and {len(text.said) for text in made.golden} == {12}
    # Words that stand there are as good where none are asked for.
    for more in ([], ["--words"]):
        assert cli.main([*command, *more]) == 0
        assert "it is not built again" in capsys.readouterr().err


def test_keys_that_cannot_be_appended_in_place_are_refused() -> None:
    network: Any = SimpleNamespace(
        num_inputs=2,
        get_input=lambda index: SimpleNamespace(name=("mask", "past_key.0")[index], shape=(1, -1, 48)),
    )
    with pytest.raises(UsageError, match="48 numbers a token.*multiples of 256 bytes.*without --words"):
        pasts(network)
