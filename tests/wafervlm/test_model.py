from __future__ import annotations

import gc
import json
import math
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wafervlm
from tests.wafervlm.toy import (
    GROUP,
    LABELS,
    SIDE,
    TEMPERATURE,
    Head,
    expected,
    make_graph,
    write_bundle,
)
from wafervlm import (
    ClosedError,
    ImageError,
    IntegrityError,
    ManifestError,
    PredictionTimeout,
    UsageError,
    VerificationError,
    WaferMap,
    WaferMapError,
    WaferVLM,
    bundle as bundle_module,
)
from wafervlm.bundle import GOLDEN, MANIFEST, open_bundle, write_manifest
from wafervlm.golden import Golden, read_golden, write_golden
from wafervlm.manifest import Graph, Manifest
from wafervlm.model import CHUNK
from wafervlm.prediction import softmax
from wafervlm.render import render
from wafervlm.verification import verify

BundleOf = Callable[..., Path]


@pytest.fixture(scope="module")
def model(shared_toy_bundle: Path) -> Iterator[WaferVLM]:
    with wafervlm.load(shared_toy_bundle, threads=1) as opened:
        yield opened


class TestPredict:
    def test_answer_is_that_of_the_graph(self, model: WaferVLM, wafers: list[WaferMap], head: Head) -> None:
        """Against numpy, through render, graph and temperature; 0.02 is what int8 activations may cost."""
        for wafer in wafers:
            answer = model.predict(wafer)
            scores = expected(render(wafer, model.task.render)[None], head)[0] / TEMPERATURE
            probabilities = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(list(answer.scores.values()), probabilities, atol=0.02)
            assert list(answer.scores) == list(LABELS)
            assert answer.label == max(answer.scores, key=lambda label: answer.scores[label])
            assert answer.confidence == answer.scores[answer.label]
            assert math.isclose(sum(answer.scores.values()), 1, abs_tol=1e-12)

    def test_answers_depend_on_the_wafer(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        assert len({model.predict(wafer).label for wafer in wafers}) > 1

    def test_says_where_it_comes_from(
        self, model: WaferVLM, wafers: list[WaferMap], shared_toy_bundle: Path
    ) -> None:
        answer = model.predict(wafers[0])
        assert answer.id == "wafer-0"
        assert answer.locked
        assert answer.wafer == wafers[0]
        assert answer.task == model.task.digest
        assert answer.bundle == model.digest == open_bundle(shared_toy_bundle).digest

    def test_timing_has_its_parts(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        started = time.perf_counter()
        timing = model.predict(wafers[0]).timing_ms
        outside = 1e3 * (time.perf_counter() - started)
        assert list(timing) == ["read", "render", "run", "total"]
        assert all(value >= 0 for value in timing.values())
        assert timing["read"] + timing["render"] + timing["run"] <= timing["total"] <= outside

    @pytest.mark.parametrize(
        "kind", ["uint8", "int64", ">i4", "float32", "fortran", "read-only", "list", "strided"]
    )
    def test_arrays_of_every_kind(self, model: WaferVLM, wafers: list[WaferMap], kind: str) -> None:
        dies = np.array(wafers[1].dies)
        given: Any = {
            "fortran": np.asfortranarray,
            "read-only": _read_only,
            "list": np.ndarray.tolist,
            "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        }.get(kind, lambda a: a.astype(kind))(dies)
        before = np.array(given, copy=True)
        assert model.predict(given).scores == model.predict(wafers[1]).scores
        np.testing.assert_array_equal(given, before)

    @pytest.mark.parametrize(
        "dies",
        [
            np.zeros((0, 0)),
            np.ones((1, 1)),
            np.ones((5000, 3)),
            np.ones((3, 5, 5)),
            np.full((5, 5), 0.5),
            np.full((5, 5), np.nan),
            -np.ones((5, 5)),
            np.full((5, 5), 3),
            np.ones((5, 5), bool),
            np.zeros((5, 5)),
            np.array([["a"] * 5] * 5),
            None,
        ],
        ids=["empty", "1x1", "huge", "3-D", "half", "nan", "negative", "3", "bool", "no-die", "text", "none"],
    )
    def test_arrays_that_are_no_die_grid(self, model: WaferVLM, dies: Any) -> None:
        with pytest.raises(WaferMapError):
            model.predict(dies)

    def test_file_of_dies(self, model: WaferVLM, wafers: list[WaferMap], tmp_path: Path) -> None:
        np.save(tmp_path / "wafer.npy", wafers[2].dies)
        for path in (tmp_path / "wafer.npy", str(tmp_path / "wafer.npy")):
            answer = model.predict(path)
            assert answer.scores == model.predict(wafers[2]).scores
            assert answer.locked

    def test_file_with_bin_codes(self, model: WaferVLM, wafers: list[WaferMap], tmp_path: Path) -> None:
        rows = [["." if die == 0 else "1" if die == 1 else "7" for die in row] for row in wafers[2].dies]
        (tmp_path / "wafer.csv").write_text("\n".join(",".join(row) for row in rows))
        answer = model.predict(tmp_path / "wafer.csv", bins={".": 0, "1": 1, "7": 2})
        assert answer.scores == model.predict(wafers[2]).scores

    def test_picture_of_a_wafer(self, model: WaferVLM, wafers: list[WaferMap], tmp_path: Path) -> None:
        Image.fromarray(render(wafers[3], model.task.render)).save(tmp_path / "wafer.png")
        answer = model.predict(tmp_path / "wafer.png")
        assert answer.scores == model.predict(wafers[3]).scores
        assert answer.locked

    def test_foreign_picture_only_when_said(self, model: WaferVLM, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "other.png")
        with pytest.raises(ImageError, match="foreign"):
            model.predict(tmp_path / "other.png")
        answer = model.predict(tmp_path / "other.png", foreign=True)
        assert not answer.locked
        assert answer.wafer is None
        assert answer.image is not None
        np.testing.assert_array_equal(answer.image, noise)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


class TestBatch:
    def test_equals_one_by_one(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        assert len(wafers) > 2 * CHUNK
        answers = model.predict_batch(wafers)
        assert [answer.id for answer in answers] == [wafer.id for wafer in wafers]
        for answer, wafer in zip(answers, wafers, strict=True):
            alone = model.predict(wafer)
            assert answer.label == alone.label
            np.testing.assert_allclose(list(answer.scores.values()), list(alone.scores.values()), atol=1e-6)

    def test_stays_small(
        self, model: WaferVLM, wafers: list[WaferMap], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes = []
        run = model._ready().run
        monkeypatch.setattr(
            model._runtime, "run", lambda images, end: sizes.append(len(images)) or run(images, end)
        )
        model.predict_batch(wafers)
        assert sizes == [CHUNK, CHUNK, len(wafers) - 2 * CHUNK]

    def test_shares_the_time_of_the_call(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        started = time.perf_counter()
        answers = model.predict_batch(wafers)
        outside = 1e3 * (time.perf_counter() - started)
        assert sum(answer.timing_ms["total"] for answer in answers) <= outside

    def test_mixes_kinds(self, model: WaferVLM, wafers: list[WaferMap], tmp_path: Path) -> None:
        np.save(tmp_path / "b.npy", wafers[1].dies)
        answers = model.predict_batch([wafers[0], tmp_path / "b.npy", wafers[2].dies])
        assert [a.label for a in answers] == [model.predict(wafer).label for wafer in wafers[:3]]

    def test_array_of_maps(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        assert len(model.predict_batch(np.stack([wafers[0].dies] * 3))) == 3

    def test_takes_a_generator(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        assert len(model.predict_batch(wafer for wafer in wafers[:2])) == 2

    def test_empty(self, model: WaferVLM) -> None:
        assert model.predict_batch([]) == []

    def test_names_the_bad_item(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        with pytest.raises(WaferMapError, match="item 17 of the batch"):
            model.predict_batch([*wafers[:17], np.full((5, 5), 3)])

    @pytest.mark.parametrize("one", ["wafer.npy", Path("wafer.npy"), WaferMap(np.ones((5, 5)))])
    def test_refuses_one_wafer(self, model: WaferVLM, one: Any) -> None:
        with pytest.raises(UsageError, match="use predict"):
            model.predict_batch(one)


class TestLabelLogProbs:
    def test_are_before_temperature(self, model: WaferVLM, wafers: list[WaferMap], head: Head) -> None:
        images = np.stack([render(wafer, model.task.render) for wafer in wafers])
        scores = model.label_log_probs(images)
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected(images, head), atol=0.2)
        np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-5)

    def test_no_images(self, model: WaferVLM) -> None:
        assert model.label_log_probs(np.empty((0, SIDE, SIDE, 3), np.uint8)).shape == (0, len(LABELS))

    @pytest.mark.parametrize(
        "images",
        [
            np.zeros((1, SIDE, SIDE + 1, 3), np.uint8),
            np.zeros((1, 3, SIDE, SIDE), np.uint8),
            np.zeros((SIDE, SIDE, 3), np.uint8),
            np.zeros((1, SIDE, SIDE, 4), np.uint8),
            np.zeros((1, SIDE, SIDE, 3), np.float32),
            np.zeros((1, SIDE, SIDE, 3), np.int8),
            [[1]],
        ],
        ids=["size", "planes", "3-D", "rgba", "float", "int8", "list"],
    )
    def test_images_of_wrong_size_or_kind(self, model: WaferVLM, images: Any) -> None:
        with pytest.raises(ImageError):
            model.label_log_probs(images)

    def test_strided_images(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        images = np.stack([render(wafer, model.task.render) for wafer in wafers])
        reverse = model.label_log_probs(images[::-1])
        np.testing.assert_allclose(reverse, model.label_log_probs(images)[::-1], atol=1e-6)


class TestThreads:
    def test_eight_threads_answer_as_one(self, model: WaferVLM, wafers: list[WaferMap]) -> None:
        alone = [model.predict(wafer).to_dict()["scores"] for wafer in wafers]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(model.predict, wafers * 10))
        assert [answer.to_dict()["scores"] for answer in together] == alone * 10

    def test_closing_while_others_predict(self, shared_toy_bundle: Path, wafers: list[WaferMap]) -> None:
        """Each call either answers or says that the model was closed."""
        model = wafervlm.load(shared_toy_bundle, threads=1)
        alone = model.predict(wafers[0]).scores

        def call_until_closed(_: int) -> int:
            for answered in range(10**6):
                try:
                    assert model.predict(wafers[0]).scores == alone
                except ClosedError:
                    return answered
            raise TimeoutError("the model was never closed")

        with ThreadPoolExecutor(4) as pool:
            counts = pool.map(call_until_closed, range(4))
            time.sleep(0.05)
            model.close()
            assert len(list(counts)) == 4


class TestTimeout:
    """The slow toy loops for as long as the first pixel is green: a die in the corner is slow."""

    @pytest.fixture
    def slow(self, bundle_of: BundleOf) -> Iterator[WaferVLM]:
        with wafervlm.load(bundle_of(slow=True), threads=1) as opened:
            yield opened

    def test_stops_the_call_and_the_model_goes_on(self, slow: WaferVLM, wafers: list[WaferMap]) -> None:
        corner = WaferMap(np.full((9, 9), 2))
        started = time.monotonic()
        with pytest.raises(PredictionTimeout):
            slow.predict(corner, timeout=0.2)
        assert time.monotonic() - started < 2
        assert slow.predict(wafers[0], timeout=30).label in LABELS
        assert slow.predict(wafers[0]).label in LABELS

    def test_is_for_the_whole_batch(self, slow: WaferVLM, wafers: list[WaferMap]) -> None:
        one = slow.predict(wafers[0]).timing_ms["total"] / 1e3
        many = [wafer for wafer in wafers for _ in range(2000)]
        started = time.monotonic()
        with pytest.raises(PredictionTimeout):
            slow.predict_batch(many, timeout=0.3 + 3 * one)
        assert time.monotonic() - started < 3

    @pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, "1", True])
    def test_that_cannot_be_meant(self, model: WaferVLM, wafers: list[WaferMap], timeout: Any) -> None:
        with pytest.raises(UsageError, match="timeout"):
            model.predict(wafers[0], timeout=timeout)


class TestClosing:
    def test_every_call_says_so(self, shared_toy_bundle: Path, wafers: list[WaferMap]) -> None:
        with wafervlm.load(shared_toy_bundle, threads=1) as model:
            model.predict(wafers[0])
            assert "ready" in repr(model)
        for call in (
            lambda: model.predict(wafers[0]),
            lambda: model.predict("nowhere.npy"),
            lambda: model.predict_batch([wafers[0]]),
            lambda: model.label_log_probs(np.zeros((1, SIDE, SIDE, 3), np.uint8)),
        ):
            with pytest.raises(ClosedError, match="load it again"):
                call()
        model.close()
        assert "closed" in repr(model)
        assert model.task.labels == LABELS

    def test_frees_the_session(self, shared_toy_bundle: Path) -> None:
        model = wafervlm.load(shared_toy_bundle, threads=1)
        session = weakref.ref(model._runtime._session)  # type: ignore[union-attr]
        model.close()
        gc.collect()
        assert session() is None


class TestRefusals:
    def test_scores_that_are_no_numbers(self, bundle_of: BundleOf) -> None:
        """A graph that divides nothing by nothing: NaN must not become an answer."""
        black = wafervlm.load(bundle_of(nan=True), threads=1)
        with pytest.raises(VerificationError, match="no probabilities"):
            black.label_log_probs(np.zeros((1, SIDE, SIDE, 3), np.uint8))
        with pytest.raises(VerificationError, match="no probabilities"):
            black.predict(WaferMap(np.ones((5, 5))))

    @pytest.mark.parametrize("options", [{"bundle": 3}, {"engine": 3}, {"runtime_cache": b"x"}])
    def test_what_is_no_path(self, options: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=f"{next(iter(options))} is .* must be the path of a folder"):
            wafervlm.load(**options)

    def test_no_bundle_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no bundle folder"):
            wafervlm.load(tmp_path / "nowhere")

    def test_no_embedded_bundle(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundle_module, "EMBEDDED", tmp_path)
        with pytest.raises(ManifestError, match="no embedded bundle"):
            wafervlm.load()

    def test_arguments_that_cannot_be_meant(self, shared_toy_bundle: Path) -> None:
        with pytest.raises(UsageError, match="runtime"):
            wafervlm.load(shared_toy_bundle, runtime="tensorflow")
        with pytest.raises(UsageError, match="device"):
            wafervlm.load(shared_toy_bundle, device="npu")
        with pytest.raises(UsageError, match="threads"):
            wafervlm.load(shared_toy_bundle, threads=0)


def test_softmax_stays_finite_and_sums_to_one() -> None:
    scores = np.array([[-1e4, 0.0, -1.0], [-3e38, -3e38, -3e38]], dtype=np.float32)
    for temperature in (1e-3, 1.0, 50.0):
        probabilities = softmax(scores, temperature)
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(softmax(np.log([[0.2, 0.8]]), 1.0), [[0.2, 0.8]])
    np.testing.assert_allclose(softmax(np.log([[0.2, 0.8]]), 0.5), [[0.04 / 0.68, 0.64 / 0.68]])


class TestVerify:
    def test_whole_bundle(self, shared_toy_bundle: Path) -> None:
        report = verify(shared_toy_bundle, threads=1)
        assert report["bundle"] == open_bundle(shared_toy_bundle).digest
        assert report["maps"] == 6
        assert report["exact"]["accuracy_level"] == 0
        assert report["exact"]["max_abs_difference"] < 1e-4 < report["deployed"]["max_abs_difference"]
        assert report["exact"]["label_agreement"] == 1
        json.dumps(report)

    def test_a_vision_tower_in_integers_has_no_exact_form(self, tmp_path: Path, head: Head) -> None:
        graph = Graph(precision="int4", group_size=GROUP, accuracy_level=0, vision="int8")
        report = verify(write_bundle(tmp_path / "int8", make_graph(head), head, graph=graph), threads=1)
        assert "exact" not in report
        assert report["deployed"]["label_agreement"] == 1

    def test_scores_that_do_not_come_out(self, toy_bundle: Path) -> None:
        golden = read_golden(open_bundle(toy_bundle))
        shifted = np.log(softmax(golden.reference + np.array([0.01, 0, 0, 0]), 1))
        write_golden(toy_bundle / GOLDEN, Golden(golden.maps, golden.labels, shifted))
        write_manifest(toy_bundle, Manifest.from_json((toy_bundle / MANIFEST).read_bytes()))
        with pytest.raises(VerificationError, match="exact: label log-probabilities are 0.0"):
            verify(toy_bundle, threads=1)

    def test_deployed_beyond_its_tolerance(self, tmp_path: Path, head: Head) -> None:
        folder = write_bundle(tmp_path / "strict", make_graph(head), head, verify_tolerance=1e-5)
        with pytest.raises(VerificationError, match="deployed"):
            verify(folder, threads=1)

    def test_damaged_bundle(self, toy_bundle: Path) -> None:
        (toy_bundle / GOLDEN).write_bytes(b"")
        with pytest.raises(IntegrityError):
            verify(toy_bundle)
