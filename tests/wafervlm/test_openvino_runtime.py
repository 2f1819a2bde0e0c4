"""OpenVINO gives the scores of ONNX Runtime, is shared by threads, ends in time, and leaves no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import wafervlm
from tests.wafervlm.toy import GROUP, LABELS, SIDE, Head, expected, make_graph, make_task, write_bundle
from wafervlm import cli
from wafervlm.bundle import MANIFEST, Graph, open_bundle, write_manifest
from wafervlm.errors import (
    ClosedError,
    LockError,
    ManifestError,
    MissingDependencyError,
    PredictionTimeout,
    ProviderError,
    UsageError,
    VerificationError,
)
from wafervlm.manifest import Manifest
from wafervlm.render import RgbImage, render
from wafervlm.runtimes import open_runtime
from wafervlm.runtimes.openvino import OpenVinoRuntime, import_openvino, settings
from wafervlm.verification import verify
from wafervlm.wafermap import WaferMap

pytest.importorskip("openvino")
ROOT = Path(wafervlm.__file__).parents[1]
BundleOf = Callable[..., Path]


@pytest.fixture(scope="module")
def images(wafers: list[WaferMap]) -> RgbImage:
    return np.stack([render(wafer, make_task().render) for wafer in wafers])


@pytest.fixture
def runtime(shared_toy_bundle: Path) -> OpenVinoRuntime:
    return OpenVinoRuntime(open_bundle(shared_toy_bundle), threads=1, accuracy_level=0)


def test_exact_level_equals_onnx_runtime_and_numpy(
    shared_toy_bundle: Path, runtime: OpenVinoRuntime, images: RgbImage, head: Head
) -> None:
    scores = runtime.run(images)
    other = open_runtime("onnx", open_bundle(shared_toy_bundle), threads=1, accuracy_level=0).run(images)
    assert scores.dtype == np.float32
    assert scores.shape == (len(images), len(LABELS))
    np.testing.assert_allclose(scores, other, atol=2e-5)
    np.testing.assert_allclose(scores, expected(images, head), atol=2e-5)
    assert len(set(scores.argmax(1))) > 1


def test_the_scores_are_the_callers_own(runtime: OpenVinoRuntime, images: RgbImage) -> None:
    first = runtime.run(images[:1])
    kept = first.copy()
    runtime.run(images[1:2])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("graph", "level", "float32", "exact"),
    [
        (Graph(group_size=GROUP), 0, True, True),
        (Graph(group_size=GROUP), 4, False, False),
        (Graph(group_size=GROUP, vision="int8"), 4, True, False),
        (Graph(group_size=GROUP, vision="int8"), 0, True, True),
    ],
)
def test_what_it_computes_in(graph: Graph, level: int, float32: bool, exact: bool) -> None:
    found = settings(graph, threads=3, accuracy_level=level)
    assert (found.get("INFERENCE_PRECISION_HINT") == "f32") is float32
    assert (found.get("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0) is exact
    assert found["INFERENCE_NUM_THREADS"] == 3
    assert "INFERENCE_NUM_THREADS" not in settings(graph, threads=None, accuracy_level=level)
    assert "CACHE_DIR" not in found


def test_verify_and_predict_by_the_command_line(
    toy_bundle: Path, wafers: list[WaferMap], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "map.npy", wafers[0].dies)
    named = ["--bundle", str(toy_bundle), "--runtime", "openvino", "--threads", "1"]
    assert cli.main(["verify", *named, "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["runtime"] == "openvino"
    assert report["exact"]["max_abs_difference"] < 1e-4
    assert said.err.splitlines()[-1].endswith("--runtime openvino")
    assert cli.main(["predict", str(tmp_path / "map.npy"), *named, "--json"]) == 0
    said = capsys.readouterr()
    with wafervlm.load(toy_bundle, threads=1) as model:
        assert json.loads(said.out)["label"] == model.predict(wafers[0]).label
    assert "openvino (computing in " in said.err
    assert cli.main(["verify", *named]) == 0
    assert "6 golden maps on openvino" in capsys.readouterr().out


def test_verify_refuses_scores_that_do_not_come_out(bundle_of: BundleOf) -> None:
    """A tolerance that no processor's rounding can meet stands for a processor that rounds too much."""
    folder = bundle_of({"verify_tolerance": 1e-12})
    with pytest.raises(VerificationError, match="golden maps here on openvino, deployed"):
        verify(folder, runtime="openvino", threads=1)


def test_auto_says_that_it_does_not_take_it(shared_toy_bundle: Path) -> None:
    with wafervlm.load(shared_toy_bundle, runtime="auto", threads=1) as model:
        assert model.runtime.startswith("onnx")
        assert "not openvino, which is taken only where it is named" in model.runtime


def test_what_cannot_be_meant(shared_toy_bundle: Path) -> None:
    with pytest.raises(UsageError, match="'openvino' runs on the CPU alone, and device is 'cuda'"):
        wafervlm.load(shared_toy_bundle, runtime="openvino", device="cuda")
    with pytest.raises(UsageError, match="threads"):
        wafervlm.load(shared_toy_bundle, runtime="openvino", threads=0)


@pytest.mark.parametrize("left", [None, ModuleType("openvino")], ids=["nothing", "empty folder"])
def test_openvino_not_installed(
    shared_toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, left: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", left)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wafervlm\[openvino\]'"):
        wafervlm.load(shared_toy_bundle, runtime="openvino")
    assert sys.modules.get("openvino_telemetry", "not there") is not None


def test_nothing_is_written_and_no_telemetry_is_loaded(shared_toy_bundle: Path, tmp_path: Path) -> None:
    """openvino on its own writes an identifier into the home folder and sends an event, at import."""
    code = (
        "import sys, wafervlm, numpy as np\n"
        f"model = wafervlm.load({str(shared_toy_bundle)!r}, runtime='openvino', threads=1)\n"
        "model.predict(np.ones((9, 9), np.uint8))\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        env={**os.environ, "HOME": str(home), "USERPROFILE": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert list(home.rglob("*")) == []


class TestContract:
    def test_other_image_size(self, tmp_path: Path, head: Head) -> None:
        folder = write_bundle(tmp_path / "b", make_graph(head, side=64), head)
        with pytest.raises(LockError, match="takes images"):
            open_runtime("openvino", open_bundle(folder), threads=1)

    def test_fixed_batch(self, tmp_path: Path, head: Head) -> None:
        folder = write_bundle(tmp_path / "b", make_graph(head, batch=1), head)
        with pytest.raises(ManifestError, match="dynamic batch"):
            open_runtime("openvino", open_bundle(folder), threads=1)

    def test_file_that_is_no_graph(self, toy_bundle: Path) -> None:
        (toy_bundle / "model.onnx").write_bytes(b"not a graph")
        write_manifest(toy_bundle, Manifest.from_json((toy_bundle / MANIFEST).read_bytes()))
        with pytest.raises(ProviderError, match=r"OpenVINO .* cannot open .*model\.onnx"):
            open_runtime("openvino", open_bundle(toy_bundle))


class TestExternalData:
    def test_weights_beside_the_graph(self, tmp_path: Path, images: RgbImage, head: Head) -> None:
        opened = open_bundle(self.bundle(tmp_path, head, "model.onnx.data"))
        scores = open_runtime("openvino", opened, threads=1, accuracy_level=0).run(images)
        np.testing.assert_allclose(scores, expected(images, head), atol=2e-5)

    @pytest.mark.parametrize("location", ["../stray.data", "stray.data"])
    def test_weights_from_elsewhere_are_refused(
        self, tmp_path: Path, head: Head, location: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Above the bundle, and in the working directory, though the file lies in both."""
        folder = self.bundle(tmp_path, head, "stray.data")
        (folder / "stray.data").rename(tmp_path / "stray.data")
        monkeypatch.chdir(tmp_path)
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        write_manifest(folder, Manifest.from_json((folder / MANIFEST).read_bytes()))
        with pytest.raises(ProviderError, match="cannot open"):
            open_runtime("openvino", open_bundle(folder), threads=1)

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


def _integers(head: Head) -> onnx.ModelProto:
    """A graph that rounds its image to 8-bit integers, whose scale is taken over the whole tensor."""
    weights = np.random.default_rng(5).integers(-100, 100, (3 * SIDE * SIDE, len(LABELS))).astype(np.int8)
    constants = {
        "flat": np.array([0, 3 * SIDE * SIDE], np.int64),
        "weights": weights,
        "size": np.float32(1e-5),
        # So that an image of dim colours gets coarser steps beside a bright one.
        "byte": np.float32(255),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "byte"], ["unit"]),
        helper.make_node("Reshape", ["unit", "flat"], ["row"]),
        helper.make_node("DynamicQuantizeLinear", ["row"], ["codes", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["codes", "weights", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["whole", "scale"], ["scaled"]),
        helper.make_node("Mul", ["scaled", "size"], ["scores"]),
        helper.make_node("LogSoftmax", ["scores"], ["label_log_probs"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("label_log_probs", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_an_answer_does_not_depend_on_the_wafers_beside_it(tmp_path: Path, head: Head) -> None:
    folder = write_bundle(
        tmp_path / "b", _integers(head), head, graph=Graph(group_size=GROUP, accuracy_level=0, vision="int8")
    )
    runtime = open_runtime("openvino", open_bundle(folder), threads=1)
    rng = np.random.default_rng(2)
    dim = rng.integers(0, 9, (1, SIDE, SIDE, 3)).astype(np.uint8)
    bright = rng.integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.uint8)
    together = runtime.run(np.concatenate([dim, bright]))
    np.testing.assert_array_equal(together[:1], runtime.run(dim))
    np.testing.assert_array_equal(together[1:], runtime.run(bright))
    other = open_runtime("onnx", open_bundle(folder), threads=1).run(dim)
    np.testing.assert_allclose(together[:1], other, atol=1e-4)


def _long(head: Head, steps: int) -> onnx.ModelProto:
    """The toy with ``steps`` products of matrices more, which add nothing."""
    model = make_graph(head)
    rng = np.random.default_rng(1)
    side = 700
    matrix = (rng.standard_normal((side, side)) / side**0.5).astype(np.float32)
    first = rng.standard_normal((len(LABELS), side)).astype(np.float32)
    values = {"long_first": first.T.copy() @ first, "long_matrix": matrix, "long_zero": np.float32(0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    last = model.graph.node.pop()
    axes = numpy_helper.from_array(np.array([0, 1], np.int64), "long_axes")
    model.graph.initializer.append(axes)
    nodes = [
        helper.make_node("ReduceMax", ["scores"], ["long_seed"], keepdims=0),
        helper.make_node("Mul", ["long_first", "long_seed"], ["long_0"]),
    ]
    for i in range(steps):
        nodes.append(helper.make_node("MatMul", [f"long_{i}", "long_matrix"], [f"long_raw_{i}"]))
        nodes.append(helper.make_node("Tanh", [f"long_raw_{i}"], [f"long_{i + 1}"]))
    nodes += [
        helper.make_node("ReduceMax", [f"long_{steps}", "long_axes"], ["long_end"], keepdims=0),
        helper.make_node("Mul", ["long_end", "long_zero"], ["long_nothing"]),
        helper.make_node("Add", ["scores", "long_nothing"], ["long_scores"]),
        helper.make_node("LogSoftmax", ["long_scores"], list(last.output), axis=-1),
    ]
    model.graph.node.extend(nodes)
    return model


class TestRunning:
    def test_eight_threads_answer_as_one(self, runtime: OpenVinoRuntime, images: RgbImage) -> None:
        alone = [runtime.run(image[None]) for image in images]
        jobs = list(range(len(images))) * 10
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda i: runtime.run(images[i][None]), jobs))
        for job, scores in zip(jobs, together, strict=True):
            np.testing.assert_array_equal(scores, alone[job])

    def test_deadline_stops_a_run_and_what_waits_and_the_next_one_answers(
        self, tmp_path: Path, head: Head, images: RgbImage
    ) -> None:
        folder = write_bundle(tmp_path / "long", _long(head, steps=150), head)
        runtime = open_runtime("openvino", open_bundle(folder), threads=1, accuracy_level=0)
        started = time.monotonic()
        whole = runtime.run(images[:1], time.monotonic() + 120)
        took = time.monotonic() - started
        np.testing.assert_allclose(whole, expected(images[:1], head), atol=2e-5)
        allowed = took / 10
        started = time.monotonic()
        with pytest.raises(PredictionTimeout, match="stopped at its timeout"):
            runtime.run(images[:1], started + allowed)
        assert allowed <= time.monotonic() - started < took / 2
        with ThreadPoolExecutor(2) as pool:
            busy = pool.submit(runtime.run, images[:1])
            time.sleep(allowed / 4)
            with pytest.raises(PredictionTimeout, match="before runs of other threads"):
                runtime.run(images[:1], time.monotonic() + allowed)
            np.testing.assert_array_equal(busy.result(), whole)

    def test_deadline_that_is_over(self, runtime: OpenVinoRuntime, images: RgbImage) -> None:
        with pytest.raises(PredictionTimeout, match="was over"):
            runtime.run(images, time.monotonic() - 1)
        assert runtime.run(images[:1], time.monotonic() + 30).shape == (1, len(LABELS))

    def test_closed(self, runtime: OpenVinoRuntime, images: RgbImage) -> None:
        runtime.close()
        runtime.close()
        with pytest.raises(ClosedError):
            runtime.run(images)

    def test_image_the_graph_cannot_take(self, runtime: OpenVinoRuntime, images: RgbImage) -> None:
        with pytest.raises(ProviderError, match="could not run"):
            runtime.run(np.zeros((1, 8, 8, 3), np.uint8))
        assert runtime.run(images[:1]).shape == (1, len(LABELS))


def test_the_doctor_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor", "--json"])
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    check = found["predict, openvino"]
    assert check["state"] == "ok"
    assert import_openvino().__version__.startswith(check["found"].removeprefix("openvino "))
