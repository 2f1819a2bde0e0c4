from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from tests.wafervlm.toy import LABELS, Head, expected, make_graph, make_head, make_task, write_bundle
from wafervlm.bundle import MANIFEST, Graph, open_bundle, write_manifest
from wafervlm.errors import (
    ClosedError,
    DigestError,
    LockError,
    ManifestError,
    MissingDependencyError,
    PredictionTimeout,
    ProviderError,
    UsageError,
    WaferVLMError,
)
from wafervlm.manifest import Manifest
from wafervlm.render import RenderSpec, RgbImage, render
from wafervlm.runtimes import onnx as module, open_runtime
from wafervlm.runtimes.onnx import import_onnxruntime
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

BundleOf = Callable[..., Path]
onnxruntime = import_onnxruntime()


@pytest.fixture(scope="module")
def images(wafers: list[WaferMap]) -> RgbImage:
    return np.stack([render(wafer, make_task().render) for wafer in wafers])


def test_exact_level_equals_numpy(shared_toy_bundle: Path, images: RgbImage, head: Head) -> None:
    runtime = open_runtime("onnx", open_bundle(shared_toy_bundle), threads=1, accuracy_level=0)
    scores = runtime.run(images)
    assert scores.dtype == np.float32
    assert scores.shape == (len(images), len(LABELS))
    np.testing.assert_allclose(scores, expected(images, head), atol=2e-5)
    assert len(set(scores.argmax(1))) > 1, "the toy must tell wafers apart"


def test_accuracy_level_comes_from_the_manifest(shared_toy_bundle: Path, images: RgbImage) -> None:
    """Level 4 rounds activations to int8, so it differs from level 0, a little."""
    opened = open_bundle(shared_toy_bundle)
    assert opened.manifest.graph.accuracy_level == 4
    exact = open_runtime("onnx", opened, threads=1, accuracy_level=0).run(images)
    deployed = open_runtime("onnx", opened, threads=1).run(images)
    difference = np.abs(exact - deployed).max()
    assert 1e-4 < difference < 0.2


def test_threads_are_those_asked_for(shared_toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wafervlm.cores.usable_cores", lambda: 3)
    opened = open_bundle(shared_toy_bundle)
    assert open_runtime("onnx", opened, threads=3)._session.get_session_options().intra_op_num_threads == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_that_cannot_be_meant(shared_toy_bundle: Path, threads: object) -> None:
    with pytest.raises(UsageError, match="threads"):
        open_runtime("onnx", open_bundle(shared_toy_bundle), threads=threads)  # type: ignore[arg-type]


def test_unknown_runtime_and_device(shared_toy_bundle: Path) -> None:
    with pytest.raises(
        UsageError, match="no runtime 'torch'; known are auto, onnx, onnx-cuda, openvino, tensorrt"
    ):
        open_runtime("torch", open_bundle(shared_toy_bundle))
    with pytest.raises(UsageError, match="no device 'tpu'.*cpu, cuda"):
        open_runtime("onnx", open_bundle(shared_toy_bundle), device="tpu")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_provider_that_is_not_there(shared_toy_bundle: Path) -> None:
    with pytest.raises(ProviderError, match=r"needs CUDAExecutionProvider.*pip install 'wafervlm\[gpu\]'"):
        open_runtime("onnx", open_bundle(shared_toy_bundle), device="cuda")


def test_provider_that_does_not_start(
    shared_toy_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A build that names the provider but opens the session on the CPU with a mere warning."""
    names = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas"))
    monkeypatch.setattr(module, "_PRELOADED", threading.Event())
    caplog.set_level("DEBUG")
    with pytest.raises(ProviderError) as caught, pytest.warns(UserWarning, match="CUDA"):
        open_runtime("onnx", open_bundle(shared_toy_bundle), device="cuda")
    assert "fell back" in str(caught.value)
    # What pip installed was looked for, and what is said of that does not stand amid results.
    assert "Failed to load libcublas" in caplog.text and not capsys.readouterr().out


@pytest.mark.parametrize("left", [None, ModuleType("onnxruntime")], ids=["nothing", "empty folder"])
def test_onnxruntime_not_installed(
    shared_toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, left: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", left)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wafervlm\[cpu\]'"):
        open_runtime("onnx", open_bundle(shared_toy_bundle))


def test_graph_changed_between_opening_and_parsing(toy_bundle: Path, head: Head) -> None:
    opened = open_bundle(toy_bundle)
    onnx.save(make_graph(make_head(seed=99)), toy_bundle / "model.onnx")
    with pytest.raises(DigestError):
        open_runtime("onnx", opened)


def test_file_that_is_no_graph(toy_bundle: Path) -> None:
    (toy_bundle / "model.onnx").write_bytes(b"not a graph")
    write_manifest(toy_bundle, Manifest.from_json((toy_bundle / MANIFEST).read_bytes()))
    with pytest.raises(ProviderError, match=r"cannot open .*model\.onnx"):
        open_runtime("onnx", open_bundle(toy_bundle))


class TestContract:
    def refused(
        self, folder: Path, model: onnx.ModelProto, error: type[WaferVLMError], match: str, **changes: object
    ) -> None:
        write_bundle(folder, model, make_head(), **changes)
        with pytest.raises(error, match=match):
            open_runtime("onnx", open_bundle(folder), threads=1)

    def test_other_image_size(self, tmp_path: Path, head: Head) -> None:
        self.refused(tmp_path / "b", make_graph(head, side=64), LockError, "takes images")

    def test_other_number_of_labels(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "b", make_graph(make_head(labels=3)), LockError, "gives scores")

    def test_other_names(self, tmp_path: Path, head: Head) -> None:
        names = Graph(input="pixels", group_size=16)
        self.refused(tmp_path / "b", make_graph(head), ManifestError, "names 'pixels'", graph=names)

    def test_fixed_batch(self, tmp_path: Path, head: Head) -> None:
        self.refused(tmp_path / "b", make_graph(head, batch=1), ManifestError, "dynamic batch")

    def test_task_of_another_size(self, tmp_path: Path, head: Head) -> None:
        task = Task(labels=LABELS, render=RenderSpec(64, 32))
        folder = write_bundle(tmp_path / "b", make_graph(head), head)
        manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
        write_manifest(folder, Manifest(**{**_fields(manifest), "task": task}))
        with pytest.raises(LockError, match="takes images"):
            open_runtime("onnx", open_bundle(folder), threads=1)


def _fields(manifest: Manifest) -> dict[str, object]:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}


class TestExternalData:
    """Graphs beyond 2 GB keep their weights in a file beside them."""

    def test_weights_beside_the_graph(self, tmp_path: Path, images: RgbImage, head: Head) -> None:
        folder = self.bundle(tmp_path, head, "model.onnx.data")
        opened = open_bundle(folder)
        assert opened.external_data
        scores = open_runtime("onnx", opened, threads=1, accuracy_level=0).run(images)
        np.testing.assert_allclose(scores, expected(images, head), atol=2e-5)

    def test_changed_weights(self, tmp_path: Path, head: Head) -> None:
        folder = self.bundle(tmp_path, head, "model.onnx.data")
        data = bytearray((folder / "model.onnx.data").read_bytes())
        data[3] ^= 1
        (folder / "model.onnx.data").write_bytes(data)
        with pytest.raises(DigestError, match=r"model\.onnx\.data"):
            open_bundle(folder)

    @pytest.mark.parametrize("kind", ["relative", "absolute"])
    def test_weights_outside_the_folder(
        self, tmp_path: Path, head: Head, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A graph whose digest is right but whose weights point out of the bundle."""
        monkeypatch.chdir(tmp_path)
        folder = self.bundle(tmp_path, head, "outer.data")
        (folder / "outer.data").rename(tmp_path / "outer.data")
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../outer.data" if kind == "relative" else str(tmp_path / "outer.data")
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        self.refused(folder)

    def test_weights_are_not_looked_for_in_the_working_directory(
        self, tmp_path: Path, head: Head, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = self.bundle(tmp_path, head, "stray.data")
        (folder / "stray.data").rename(tmp_path / "stray.data")
        monkeypatch.chdir(tmp_path)
        self.refused(folder)

    def refused(self, folder: Path) -> None:
        write_manifest(folder, Manifest.from_json((folder / MANIFEST).read_bytes()))
        with pytest.raises(ProviderError, match="cannot open.*External data path"):
            open_runtime("onnx", open_bundle(folder), threads=1)

    def bundle(self, tmp_path: Path, head: Head, location: str) -> Path:
        folder = write_bundle(tmp_path / "external", make_graph(head), head)
        manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
        model = onnx.load(folder / "model.onnx")
        (folder / "model.onnx").unlink()
        onnx.save_model(
            model, folder / "model.onnx", save_as_external_data=True, location=location, size_threshold=64
        )
        write_manifest(folder, manifest)
        return folder


class TestRunning:
    def test_eight_threads_answer_as_one(self, shared_toy_bundle: Path, images: RgbImage) -> None:
        runtime = open_runtime("onnx", open_bundle(shared_toy_bundle), threads=1)
        alone = [runtime.run(image[None]) for image in images]
        jobs = list(range(len(images))) * 25
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda i: runtime.run(images[i][None]), jobs))
        for job, scores in zip(jobs, together, strict=True):
            np.testing.assert_array_equal(scores, alone[job])

    def test_batch_equals_one_by_one(self, shared_toy_bundle: Path, images: RgbImage) -> None:
        runtime = open_runtime("onnx", open_bundle(shared_toy_bundle), threads=1)
        alone = np.concatenate([runtime.run(image[None]) for image in images])
        np.testing.assert_allclose(runtime.run(images), alone, atol=1e-6)

    def test_deadline_stops_a_run_and_the_session_survives(self, bundle_of: BundleOf, head: Head) -> None:
        runtime = open_runtime("onnx", open_bundle(bundle_of(slow=True)), threads=1, accuracy_level=0)
        long, short = np.full((1, 32, 32, 3), 255, np.uint8), np.zeros((1, 32, 32, 3), np.uint8)
        started = time.monotonic()
        with pytest.raises(PredictionTimeout, match="stopped at its timeout") as caught:
            runtime.run(long, time.monotonic() + 0.2)
        assert 0.2 <= time.monotonic() - started < 2
        assert isinstance(caught.value, TimeoutError)
        for _ in range(2):
            np.testing.assert_allclose(
                runtime.run(short, time.monotonic() + 30), expected(short, head), atol=2e-5
            )

    def test_deadline_that_is_over(self, shared_toy_bundle: Path, images: RgbImage) -> None:
        runtime = open_runtime("onnx", open_bundle(shared_toy_bundle), threads=1)
        with pytest.raises(PredictionTimeout, match="was over"):
            runtime.run(images, time.monotonic() - 1)
        assert runtime.run(images[:1], time.monotonic() + 30).shape == (1, len(LABELS))

    def test_one_stopped_run_does_not_stop_others(self, bundle_of: BundleOf) -> None:
        runtime = open_runtime("onnx", open_bundle(bundle_of(slow=True)), threads=1)
        long, medium = np.full((1, 32, 32, 3), 255, np.uint8), np.full((1, 32, 32, 3), 10, np.uint8)
        with ThreadPoolExecutor(2) as pool:
            stopped = pool.submit(runtime.run, long, time.monotonic() + 0.1)
            others = [pool.submit(runtime.run, medium, time.monotonic() + 60) for _ in range(3)]
            with pytest.raises(PredictionTimeout):
                stopped.result()
            assert all(other.result().shape == (1, len(LABELS)) for other in others)

    def test_closed(self, shared_toy_bundle: Path, images: RgbImage) -> None:
        runtime = open_runtime("onnx", open_bundle(shared_toy_bundle), threads=1)
        runtime.close()
        runtime.close()
        with pytest.raises(ClosedError):
            runtime.run(images)

    def test_image_the_graph_cannot_take(self, shared_toy_bundle: Path) -> None:
        runtime = open_runtime("onnx", open_bundle(shared_toy_bundle), threads=1)
        with pytest.raises(ProviderError, match="could not run"):
            runtime.run(np.zeros((1, 8, 8, 3), np.uint8))
