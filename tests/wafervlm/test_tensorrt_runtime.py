"""What becomes of errors, threads and time on an engine, with stand-ins for TensorRT and CUDA.

No engine runs here (see fake_tensorrt.py); that the names exist and engines are built is in
test_tensorrt_build.py.
"""

from __future__ import annotations

import gc
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wafervlm
from tests.wafervlm.fake_tensorrt import FakeContext, FakeCuda, FakeEngine, FakeKernels, fake_library, install
from tests.wafervlm.test_engine import manifest_of
from tests.wafervlm.toy import LABELS, SIDE
from wafervlm import cli
from wafervlm.bundle import Bundle, open_bundle
from wafervlm.engine import (
    Engine,
    open_engine,
    read_manifest,
    write_engine_manifest,
    write_file,
    writing_engine,
)
from wafervlm.engine_manifest import ENGINE_FILE
from wafervlm.errors import (
    ClosedError,
    DeviceLost,
    DigestError,
    ManifestError,
    MissingDependencyError,
    PredictionTimeout,
    ProviderError,
    ResourceError,
    UsageError,
    VerificationError,
    WaferVLMWarning,
)
from wafervlm.golden import read_golden
from wafervlm.render import render
from wafervlm.runtimes import open_runtime
from wafervlm.runtimes.tensorrt_package import Messages
from wafervlm.verification import verify
from wafervlm.wafermap import WaferMap

VERSION = "1.7.1.116"
FLAT = np.full(len(LABELS), -np.log(len(LABELS)), np.float32)


class Machine:
    """One bundle, its engine, and the stand-ins that run it."""

    def __init__(self, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch, builder: str) -> None:
        self.bundle, self.folder, self._patch = bundle, folder, monkeypatch
        self.messages, self.cuda = Messages(), FakeCuda()
        self.context = FakeContext(FLAT, self.messages)
        self.fake: FakeEngine | None = FakeEngine(self.context, SIDE, 16)
        with writing_engine(folder) as work:
            manifest = manifest_of(bundle, builder=builder, file=write_file(work, b"engine"))
            write_engine_manifest(work, manifest)
        self.builder = builder
        self.use(VERSION)

    def use(self, version: str) -> None:
        install(self._patch, fake_library(self.builder, version, self.fake, self.messages), self.cuda)

    def open(self, **options: Any) -> Any:
        return open_runtime("tensorrt", self.bundle, engine=open_engine(self.folder, self.bundle), **options)


@pytest.fixture
def bundle(shared_toy_bundle: Path) -> Bundle:
    return open_bundle(shared_toy_bundle)


@pytest.fixture(params=["tensorrt_rtx", "tensorrt"])
def machine(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Machine:
    return Machine(bundle, tmp_path / "engine", monkeypatch, request.param)


def images(count: int) -> Any:
    return np.zeros((count, SIDE, SIDE, 3), np.uint8)


def test_scores_come_back_for_each_batch(machine: Machine) -> None:
    runtime = machine.open()
    for count in (1, 1, 1, 3, 16, 1):
        np.testing.assert_array_equal(runtime.run(images(count)), np.tile(FLAT, (count, 1)))


def test_a_shape_is_captured_at_its_second_pass_by_tensorrt_alone(machine: Machine) -> None:
    runtime = machine.open()
    for _ in range(4):
        runtime.run(images(2))
    captured = machine.builder == "tensorrt"
    assert machine.cuda.calls.count("cudaStreamBeginCapture") == int(captured)
    assert machine.cuda.calls.count("cudaGraphLaunch") == (3 if captured else 0)
    runtime.run(images(1))
    assert machine.cuda.calls.count("cudaGraphExecDestroy") == int(captured)


def test_a_pass_that_cannot_be_captured_runs_without(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.cuda.fail["cudaStreamEndCapture"] = "cudaErrorStreamCaptureInvalidated"
    runtime = machine.open()
    for _ in range(3):
        np.testing.assert_array_equal(runtime.run(images(1)), [FLAT])
    assert ("cannot be captured" in caplog.text) is (machine.builder == "tensorrt")


def test_what_was_recorded_of_a_pass_that_failed_is_freed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine.builder == "tensorrt_rtx":
        pytest.skip("it captures by itself")
    runtime, execute = machine.open(), machine.context.execute_async_v3
    monkeypatch.setattr(
        machine.context, "execute_async_v3", lambda s: machine.context.executed != 1 and execute(s)
    )
    runtime.run(images(1))
    machine.context.executed = 1
    with pytest.raises(ProviderError, match="could not run"):
        runtime.run(images(1))
    calls = machine.cuda.calls
    assert calls.count("cudaGraphInstantiate") == calls.count("cudaGraphExecDestroy") == 1
    machine.context.executed = 0
    np.testing.assert_array_equal(runtime.run(images(1)), [FLAT])


def test_more_images_than_the_profile_takes(machine: Machine) -> None:
    runtime = machine.open()
    with pytest.raises(UsageError, match="17 images at once are more than the engine takes, 16.*--max-batch"):
        runtime.run(images(17))
    assert runtime.run(images(1)).shape == (1, len(LABELS))


def test_another_compute_capability(machine: Machine) -> None:
    machine.cuda.capability = (12, 0)
    with pytest.raises(
        ProviderError, match=r"8\.6, 8\.9, and the GPU here \(Fake GPU\) has 12\.0.*wafervlm engine"
    ):
        machine.open()


def test_another_version(machine: Machine) -> None:
    machine.use("1.6.0.1")
    package = machine.builder.replace("_", "-")
    says = (
        rf"{VERSION}, and here is 1\.6\.0\.1.*'wafervlm\[{package}\]' {package}=={VERSION}, or build it "
        r"again: wafervlm engine --bundle \S+ -o \S+ --replace --target rtx:8\.6,8\.9$"
    )
    with pytest.raises(ProviderError, match=says):
        machine.open()


def test_without_its_package_the_one_version_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise MissingDependencyError(f"{name} is not installed; install it with: another line")

    monkeypatch.setattr("wafervlm.runtimes.tensorrt_loading.import_library", absent)
    package = machine.builder.replace("_", "-")
    says = rf"is not installed; install it with: pip install 'wafervlm\[{package}\]' {package}=={VERSION}$"
    with pytest.raises(MissingDependencyError, match=says):
        machine.open()


@pytest.mark.parametrize("status", ["cudaErrorInsufficientDriver", "cudaErrorNoDevice"])
def test_no_driver(machine: Machine, status: str) -> None:
    machine.cuda.fail["cudaGetDeviceCount"] = status
    with pytest.raises(
        ProviderError, match=rf"compute capability 8\.6, 8\.9; no GPU.*{status}.*--runtime onnx"
    ):
        machine.open()


def test_a_swapped_engine_is_not_loaded(machine: Machine) -> None:
    (machine.folder / ENGINE_FILE).write_bytes(b"enginE")
    with pytest.raises(DigestError):
        machine.open()
    assert not machine.cuda.memory


def test_an_engine_that_does_not_load(machine: Machine) -> None:
    machine.fake = None
    machine.use(VERSION)
    with pytest.raises(
        ProviderError, match=r"cannot load engine.*could not be deserialized.*wafervlm engine"
    ):
        machine.open()
    assert not machine.cuda.memory


def test_an_engine_of_another_shape(machine: Machine) -> None:
    machine.fake = FakeEngine(machine.context, SIDE, 8)
    machine.use(VERSION)
    with pytest.raises(ManifestError, match="up to 8 images"):
        machine.open()


def test_no_memory_for_buffers(machine: Machine) -> None:
    machine.cuda.fail["cudaMalloc"] = "cudaErrorMemoryAllocation"
    with pytest.raises(ResourceError, match="memory is full.*--max-batch"):
        machine.open()
    assert not machine.cuda.memory
    made = machine.cuda.calls.count("cudaStreamCreateWithFlags")
    assert machine.cuda.calls.count("cudaStreamDestroy") == made
    machine.cuda.fail.clear()
    np.testing.assert_array_equal(machine.open().run(images(1)), [FLAT])


def test_no_memory_for_the_context(machine: Machine) -> None:
    assert machine.fake is not None
    machine.fake.context = None
    with pytest.raises(ResourceError, match="needs 5 MB"):
        machine.open()
    assert not machine.cuda.memory


def test_no_memory_for_a_run_and_then_there_is(machine: Machine) -> None:
    runtime = machine.open()
    machine.context.refuse = "Error Code 2: OutOfMemory (Requested size was 5 bytes.)"
    with pytest.raises(ResourceError, match="memory is full.*OutOfMemory"):
        runtime.run(images(1))
    machine.context.refuse = ""
    np.testing.assert_array_equal(runtime.run(images(1)), [FLAT])


def test_a_run_that_fails_for_another_reason(machine: Machine) -> None:
    runtime = machine.open()
    machine.context.refuse = "Error Code 1: Myelin"
    with pytest.raises(ProviderError, match="could not run: Error Code 1: Myelin.*wafervlm verify --bundle"):
        runtime.run(images(1))
    machine.context.refuse = ""
    np.testing.assert_array_equal(runtime.run(images(2)), [FLAT, FLAT])


def test_out_of_memory_ends_one_prediction_and_not_the_model(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, wafers: list[WaferMap]
) -> None:
    monkeypatch.setattr("wafervlm.verification.needs_verification", lambda *_: False)
    with wafervlm.load(machine.bundle.path, engine=machine.folder) as model:
        machine.context.refuse = "Error Code 2: OutOfMemory (Requested size was 5 bytes.)"
        for ask in (lambda: model.predict(wafers[0]), lambda: model.predict_batch(wafers[:3])):
            with pytest.raises(ResourceError, match="memory is full"):
                ask()
        machine.context.refuse = ""
        assert [each.id for each in model.predict_batch(wafers[:3])] == [each.id for each in wafers[:3]]


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
@pytest.mark.parametrize("status", ["cudaErrorIllegalAddress", "cudaErrorLaunchTimeout"])
def test_a_gpu_lost_at_any_step_of_a_run(machine: Machine, function: str, status: str) -> None:
    runtime = machine.open()
    machine.cuda.fail[function] = status
    with pytest.raises(DeviceLost, match=f"{function} gave {status}"):
        runtime.run(images(1))
    machine.cuda.fail.clear()
    with pytest.raises(DeviceLost, match="stopped answering"):
        runtime.run(images(1))
    runtime.close()


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaStreamCreateWithFlags"])
def test_a_gpu_lost_while_loading(machine: Machine, function: str) -> None:
    machine.cuda.fail[function] = "cudaErrorLaunchFailure"
    with pytest.raises(DeviceLost, match=f"{function} gave cudaErrorLaunchFailure"):
        machine.open()
    assert not machine.cuda.memory


def test_a_gpu_that_disappears_ends_the_engine_not_the_process(machine: Machine, toy_bundle: Path) -> None:
    runtime = machine.open()
    machine.cuda.fail["cudaStreamSynchronize"] = "cudaErrorLaunchFailure"
    with pytest.raises(DeviceLost, match="stopped answering.*cudaErrorLaunchFailure.*--runtime onnx"):
        runtime.run(images(1))
    machine.cuda.fail.clear()
    with pytest.raises(DeviceLost, match="stopped answering"):
        runtime.run(images(1))
    runtime.close()
    with wafervlm.load(toy_bundle, threads=1) as model:
        assert model.label_log_probs(images(1)).shape == (1, len(LABELS))


def test_a_timeout_leaves_the_engine_usable(machine: Machine) -> None:
    runtime = machine.open()
    machine.cuda.busy = True
    with pytest.raises(PredictionTimeout, match="stopped at its timeout"):
        runtime.run(images(1), time.monotonic() + 0.05)
    with pytest.raises(PredictionTimeout, match="over before"):
        runtime.run(images(1), time.monotonic() - 1)
    machine.cuda.busy = False
    np.testing.assert_array_equal(runtime.run(images(1), time.monotonic() + 5), [FLAT])


def test_two_threads_never_run_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, inside, most = machine.open(), [0], [0]
    execute = machine.context.execute_async_v3

    def slow(stream: int) -> bool:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        inside[0] -= 1
        return execute(stream)

    monkeypatch.setattr(machine.context, "execute_async_v3", slow)
    threads = [threading.Thread(target=runtime.run, args=(images(1 + i % 3),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_closing_frees_everything_once(machine: Machine) -> None:
    runtime = machine.open()
    runtime.run(images(1))
    runtime.close()
    runtime.close()
    assert not machine.cuda.memory
    assert machine.cuda.calls.count("cudaStreamDestroy") == 1
    with pytest.raises(ClosedError):
        runtime.run(images(1))


def test_dropping_it_frees_everything_too(machine: Machine) -> None:
    runtime = machine.open()
    for _ in range(3):
        runtime.run(images(1))
    del runtime
    gc.collect()
    assert not machine.cuda.memory
    calls = machine.cuda.calls
    assert calls.count("cudaStreamDestroy") == 1
    assert calls.count("cudaGraphExecDestroy") == calls.count("cudaGraphInstantiate")


def test_the_runtime_cache_is_kept_and_taken_again(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    if machine.builder == "tensorrt":
        with pytest.raises(UsageError, match="for engines of tensorrt_rtx"):
            machine.open(runtime_cache=folder)
        return
    machine.open(runtime_cache=folder).run(images(1))
    (kept,) = folder.iterdir()
    assert kept.read_bytes() == b"kernels"
    runtime = machine.open(runtime_cache=folder)
    assert FakeKernels.taken == b"kernels"
    with monkeypatch.context() as patch:
        for count, data in ((1, b"kernels"), (3, b"more kernels")):
            patch.setattr(FakeKernels, "serialize", lambda _, data=data: data)
            runtime.run(images(count))
            assert kept.read_bytes() == data
    kept.write_bytes(b"of another driver")
    machine.open(runtime_cache=folder).run(images(1))
    assert kept.read_bytes() == b"kernels"


def test_an_unverified_engine_is_refused_until_verify_has_run(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.bundle.path
    with pytest.raises(
        VerificationError, match="before its first use run: wafervlm verify --bundle .* --engine"
    ):
        wafervlm.load(path, engine=machine.folder)
    good_answers(machine, monkeypatch)
    assert cli.main(["verify", "--bundle", str(path), "--engine", str(machine.folder)]) == 0
    assert "wafervlm predict map.npy" in capsys.readouterr().err
    with wafervlm.load(path, engine=machine.folder) as model:
        assert model.runtime == "tensorrt"
    machine.cuda._cudaDriverGetVersion = lambda: (0, 12080)  # type: ignore[method-assign]
    with pytest.raises(VerificationError, match=r"CUDA 12\.8"):
        wafervlm.load(path, engine=machine.folder)


def test_an_engine_in_a_read_only_folder_is_verified_at_each_start(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "is_writable", False)
    with pytest.raises(VerificationError, match="does not reproduce the golden maps"):
        wafervlm.load(machine.bundle.path, engine=machine.folder)
    assert not machine.cuda.memory
    good_answers(machine, monkeypatch)
    for _ in range(2):
        before = machine.context.executed
        with wafervlm.load(machine.bundle.path, engine=machine.folder):
            assert machine.context.executed > before


def test_scores_that_are_off_are_not_recorded(machine: Machine) -> None:
    with pytest.raises(VerificationError, match=r"up to .* off \(0\.5 allowed\).*do not use it"):
        verify(machine.bundle.path, engine=machine.folder)
    assert not (machine.folder / "verified.json").exists()


@pytest.mark.parametrize("wrong", [1, 2])
def test_one_wafer_and_many_must_both_come_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """Each batch size may have kernels of its own: ``wrong`` is 1 for those of one image, 2 for the rest."""
    from wafervlm.runtimes.tensorrt import TensorRTRuntime

    good_answers(machine, monkeypatch)
    good = TensorRTRuntime.run

    def answer(self: Any, given: Any, deadline: float | None = None) -> Any:
        right = good(self, given, deadline)
        return np.tile(FLAT, (len(given), 1)) if min(len(given), 2) == wrong else right

    monkeypatch.setattr(TensorRTRuntime, "run", answer)
    with pytest.raises(VerificationError, match="does not reproduce the golden maps"):
        verify(machine.bundle.path, engine=machine.folder)


def test_an_engine_that_stands_is_verified_where_its_gpu_is(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Built ahead of time, or on another GPU of the same compute capability."""
    if machine.builder == "tensorrt_rtx":
        pytest.skip("which capabilities it builds for is not in the stand-in")
    weights = machine.bundle.manifest.graph.precision
    manifest = replace(read_manifest(machine.folder), compute_capabilities=("8.9",), weights=weights)
    write_engine_manifest(machine.folder, manifest)
    command = ["engine", "--bundle", str(machine.bundle.path), "--target", "tensorrt"]
    command += ["-o", str(machine.folder), "--json"]
    assert cli.main(command) == VerificationError.exit_code
    good_answers(machine, monkeypatch)
    capsys.readouterr()
    for ran in (True, False):
        assert cli.main(command) == 0
        told = capsys.readouterr()
        assert ("running the golden maps" in told.err) is ran
        assert "it is not built again" in told.err and "next: wafervlm predict" in told.err
        assert '"label_agreement": 1.0' in told.out
    with wafervlm.load(machine.bundle.path, engine=machine.folder) as model:
        assert model.runtime == "tensorrt"


def test_another_engine_only_gives_way_where_it_is_told_to(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if machine.builder == "tensorrt_rtx":
        pytest.skip("which capabilities it builds for is not in the stand-in")
    weights = machine.bundle.manifest.graph.precision
    manifest = replace(read_manifest(machine.folder), compute_capabilities=("8.9",), weights=weights)
    write_engine_manifest(machine.folder, manifest)
    good_answers(machine, monkeypatch)
    monkeypatch.setattr("wafervlm.engine_build.build_engine", lambda *_, **__: memoryview(b"engine"))
    path, out = str(machine.bundle.path), str(machine.folder)
    command = ["engine", "--bundle", path, "--target", "tensorrt", "-o", out]
    before = (machine.folder / "manifest.json").read_bytes()
    assert cli.main([*command, "--precision", "fp32", "--max-batch", "4"]) == 2
    assert "holds another engine (precision, max_batch, tolerance); choose" in capsys.readouterr().err
    (machine.folder / ENGINE_FILE).write_bytes(b"enginE")
    assert cli.main(command) == 2
    assert "holds an engine that is damaged; choose" in capsys.readouterr().err
    assert (machine.folder / "manifest.json").read_bytes() == before
    assert (machine.folder / ENGINE_FILE).read_bytes() == b"enginE"
    assert cli.main([*command, "--replace"]) == 0
    told = capsys.readouterr()
    assert (machine.folder / ENGINE_FILE).read_bytes() == b"engine"
    first, *_, last = told.out.splitlines()
    assert first.startswith(f"engine {out}: 0.0 MB in ")
    assert last.startswith("golden maps on Fake GPU: label log-probabilities up to ")


def test_what_cannot_be_written_is_known_before_the_settings(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "engine"
    command = ["engine", "--bundle", str(machine.bundle.path), "--target", "tensorrt", "-o", str(out)]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert "is no folder; name a place elsewhere" in told and "settings" not in told


def test_long_lists_are_cut_to_what_the_engine_takes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, wafers: list[WaferMap]
) -> None:
    monkeypatch.setattr("wafervlm.verification.needs_verification", lambda *_: False)
    manifest = replace(read_manifest(machine.folder), max_batch=3)
    write_engine_manifest(machine.folder, manifest)
    machine.fake = FakeEngine(machine.context, SIDE, 3)
    machine.use(VERSION)
    with wafervlm.load(machine.bundle.path, engine=machine.folder) as model:
        assert len(model.predict_batch(wafers[:7])) == 7
        assert machine.context.shape[0] == 1


def test_auto_takes_the_engine_where_it_can_run_and_says_why_not_elsewhere(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wafervlm.verification.needs_verification", lambda *_: False)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    path = machine.bundle.path
    with wafervlm.load(path, runtime="auto", engine=machine.folder) as model:
        assert model.runtime == "tensorrt (the engine runs on Fake GPU (compute capability 8.9))"
    machine.cuda.capability = (7, 5)
    with pytest.warns(WaferVLMWarning, match=r"engine .* is not used: runtime auto is onnx .*has 7\.5"):
        model = wafervlm.load(path, runtime="auto", engine=machine.folder, threads=1)
    with model:
        assert model.runtime.startswith("onnx (not tensorrt: engine")
        assert "has 7.5" in model.runtime


def test_an_engine_that_is_not_used_is_said_once(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.cuda.capability = (7, 5)
    np.save(tmp_path / "map.npy", np.ones((9, 9), np.uint8))
    command = ["predict", str(tmp_path / "map.npy"), "--bundle", str(machine.bundle.path), "--threads", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main([*command, "--engine", str(machine.folder), "--runtime", "auto"]) == 0
    told = capsys.readouterr().err
    assert f"warning: engine {machine.folder} is not used: runtime auto is onnx (" in told
    assert told.count("has 7.5") == 1 and "  runtime        onnx\n" in told


def good_answers(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the scores be the golden maps' own, by their images."""
    from wafervlm.runtimes.tensorrt import TensorRTRuntime

    golden, spec = read_golden(machine.bundle), machine.bundle.manifest.task.render
    scores = {render(w, spec).tobytes(): row for w, row in zip(golden.maps, golden.reference, strict=True)}
    run = TensorRTRuntime.run

    def answer(self: Any, given: Any, deadline: float | None = None) -> Any:
        run(self, given, deadline)
        return np.stack([scores[image.tobytes()] for image in given])

    monkeypatch.setattr(TensorRTRuntime, "run", answer)
