"""Scoring an archive on a local Ray: the library's own answers, resumed, and errors that end nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import wafervlm
from tests.wafervlm.test_engine import write
from tests.wafervlm.toy import LABELS
from wafervlm import WaferMap, cli, score
from wafervlm.archive import Found
from wafervlm.bundle import open_bundle
from wafervlm.errors import ProviderError, ResourceError, UsageError
from wafervlm.score import Scorer, _actors, score_archive
from wafervlm.score_config import ScoreConfig
from wafervlm.score_parts import pack, unpack
from wafervlm.score_process import drive_apart
from wafervlm.score_ray import running_ray

ROOT = Path(wafervlm.__file__).parents[1]
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'wafervlm[archive]'")


@pytest.fixture
def archive(tmp_path: Path, wafers: list[WaferMap]) -> Path:
    """Forty wafers as files, three of which cannot be read."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for index, wafer in enumerate(wafers):
        np.save(folder / f"{index:02d}.npy", wafer.dies)
    for index in (0, 7, 39):
        (folder / f"{index:02d}.npy").write_bytes(b"not a map")
    return folder


def test_what_readers_hand_to_actors_comes_through(wafers: list[WaferMap]) -> None:
    found = [Found("a", wafers[0]), Found("b", None, "no"), Found("c", wafers[1])]
    for before, after in zip(found, unpack(pack(found)), strict=True):
        assert (after.id, after.error, after.wafer is None) == (before.id, before.error, before.wafer is None)
        if before.wafer is not None and after.wafer is not None:
            np.testing.assert_array_equal(after.wafer.dies, before.wafer.dies)


@pytest.mark.parametrize(
    ("resources", "config", "wanted"),
    [
        ({"CPU": 8}, {"threads": 2}, (4, {"num_cpus": 1.0})),
        ({"CPU": 1}, {}, (1, {"num_cpus": 0.5})),
        ({"CPU": 8, "GPU": 4}, {"device": "cuda"}, (4, {"num_gpus": 1.0, "num_cpus": 0.5})),
        ({"CPU": 8, "GPU": 4}, {"device": "cuda", "actors": 2}, (2, {"num_gpus": 1.0, "num_cpus": 0.5})),
        ({"CPU": 8, "GPU": 4}, {"engine": Path("e")}, (4, {"num_gpus": 1.0, "num_cpus": 0.5})),
        ({"CPU": 8, "GPU": 2}, {"runtime": "onnx-cuda"}, (2, {"num_gpus": 1.0, "num_cpus": 0.5})),
        ({"CPU": 8, "GPU": 2}, {"runtime": "openvino"}, (8, {"num_cpus": 0.5})),
    ],
)
def test_there_is_one_actor_for_each_gpu(
    resources: dict[str, float], config: dict[str, Any], wanted: tuple[int, dict[str, float]]
) -> None:
    assert _actors(resources, ScoreConfig(**config)) == wanted


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(ProviderError, match="device is cuda and there is no GPU"):
        _actors({"CPU": 8}, ScoreConfig(device="cuda"))
    with pytest.raises(UsageError, match="actors is 3 and Ray sees 2"):
        _actors({"CPU": 8, "GPU": 2}, ScoreConfig(device="cuda", actors=3))
    with pytest.raises(UsageError, match="too many for 2 cores"):
        _actors({"CPU": 2}, ScoreConfig(actors=4))
    with pytest.raises(ProviderError, match="runtime is tensorrt and there is no GPU"):
        _actors({"CPU": 8}, ScoreConfig(engine=Path("e")))
    with pytest.raises(UsageError, match="part_maps is 0"):
        ScoreConfig(part_maps=0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"runtime": "auto"}, "none chooses for itself"),
        ({"runtime": "tensorrt"}, "none is named"),
        ({"runtime": "onnx", "engine": Path("e")}, "runs no engine"),
    ],
)
def test_a_runtime_that_cannot_be_meant(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        ScoreConfig(**config)


def test_each_actor_loads_the_engine(
    tmp_path: Path, wafers: list[WaferMap], toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = wafervlm.load

    def noted(bundle: Path, **options: Any) -> Any:
        asked.append(options)
        return real(bundle, threads=1)

    monkeypatch.setattr("wafervlm.loading.load", noted)
    config = ScoreConfig(toy_bundle, engine=tmp_path / "e", threads=2)
    out = tmp_path / "scores"
    out.mkdir()
    scorer = Scorer(out, toy_bundle, config.loading)
    data = np.empty(2, object)
    data[:] = [pack([Found("a", wafers[0])]), pack([Found("b", wafers[1])])]
    assert scorer({"part": np.arange(2), "maps": data})["maps"].tolist() == [1, 1]
    assert asked == [{"device": "cpu", "threads": 2, "runtime": "tensorrt", "engine": tmp_path / "e"}]
    assert [row["id"] for row in rows(out)] == ["a", "b"]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local Ray for all tests that need one."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'wafervlm[archive]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def rows(out: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    found: list[dict[str, Any]] = pyarrow.parquet.read_table(out).to_pylist()
    return found


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_the_answers_are_the_librarys(ray: Any, tmp_path: Path, archive: Path, toy_bundle: Path) -> None:
    out = tmp_path / "scores"
    config = ScoreConfig(toy_bundle, part_maps=16, actors=2)
    summary = score_archive([archive], out, config)
    assert (summary["maps"], summary["parts"], summary["scored"], summary["errors"]) == (40, 3, 3, 3)
    found = rows(out)
    assert [row["id"] for row in found] == [f"{index:02d}.npy" for index in range(40)]
    with wafervlm.load(toy_bundle, threads=1) as model:
        for row in found:
            assert row["bundle"] == model.digest
            if row["id"] in ("00.npy", "07.npy", "39.npy"):
                assert "neither a .npy nor a .npz" in row["error"]
                assert row["label"] is row["confidence"] is row["scores"] is None
                continue
            answer = model.predict(archive / row["id"])
            assert (row["label"], row["error"]) == (answer.label, None)
            assert tuple(row["scores"]) == LABELS
            assert row["scores"] == pytest.approx(dict(answer.scores), abs=1e-4)
    assert sum(summary["labels"].values()) == 37

    stamps = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    (out / "part-00001.parquet").unlink()
    left, anothers = (out / f".part-00001.parquet.{number}.writing" for number in (1, 2))
    for path, age in ((left, 3700), (anothers, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    again = score_archive([archive], out, config)
    assert again == {**summary, "scored": 1}
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert {path.name for path in stamps if kept[path] != stamps[path]} == {"part-00001.parquet"}
    assert list(out.glob(".*")) == [anothers]
    assert rows(out) == found


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_an_error_of_the_model_arrives_as_it_is(
    ray: Any, tmp_path: Path, archive: Path, toy_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["score", str(archive), "-o", str(tmp_path / "s"), "--bundle", str(toy_bundle)]
    assert cli.main([*arguments, "--device", "cuda"]) == ProviderError.exit_code
    assert "there is no GPU" in capsys.readouterr().err
    assert cli.main([*arguments, "--actors", "9"]) == UsageError.exit_code
    assert not (tmp_path / "s").exists()
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == 3


@pytest.mark.ray
@pytest.mark.slow
def test_killed_it_goes_on_where_it_stopped(tmp_path: Path, archive: Path, toy_bundle: Path) -> None:
    """Ctrl-C once the first part stands; what stands then is not made again."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'wafervlm[archive]'")
    out = tmp_path / "scores"
    arguments = ["score", str(archive), "-o", str(out), "--bundle", str(toy_bundle), "--part-maps", "1"]
    command = [sys.executable, "-m", "wafervlm.cli", *arguments, "--actors", "1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("part-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 0 < len(before) < 40
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} complete already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(rows(out)) == 40


@pytest.mark.parametrize(
    "kind", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "no")]
)
def test_a_part_that_cannot_be_written_is_named(
    tmp_path: Path, wafers: list[WaferMap], toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: OSError
) -> None:
    def fail(*_: object) -> None:
        raise kind

    monkeypatch.setattr("wafervlm.score_parts.write_whole", fail)
    data = np.empty(1, object)
    data[0] = pack([Found("a", wafers[0])])
    with pytest.raises(
        ResourceError, match=rf"part-00000.parquet cannot be written \({kind.strerror}\).*again"
    ):
        Scorer(tmp_path, toy_bundle, {"threads": 1})({"part": np.arange(1), "maps": data})


class FakeRay:
    """What ``running_ray`` calls, in the order that it calls it."""

    class exceptions:  # noqa: N801
        RayError = type("RayError", (Exception,), {})
        OutOfMemoryError = type("OutOfMemoryError", (RayError,), {})

    def __init__(self, fault: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.fault = fault

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: object) -> None:
        self.calls.append("init")
        if self.fault:
            raise self.fault

    def shutdown(self) -> None:
        self.calls.append("shutdown")


def test_ray_is_ended_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setattr("wafervlm.score_ray._import_ray", lambda: ray)
    with pytest.raises(KeyboardInterrupt), running_ray(ScoreConfig()):
        raise KeyboardInterrupt
    with pytest.raises(ProviderError, match=r"could not go on: first line; run"), running_ray(ScoreConfig()):
        raise FakeRay.exceptions.RayError("first line\nsecond")
    with pytest.raises(ResourceError, match="the disk is full"), running_ray(ScoreConfig()):
        raise FakeRay.exceptions.RayError("ray::_map\nOSError: [Errno 28] No space left on device")
    assert ray.calls == ["init", "shutdown"] * 3
    ray.fault = OSError(errno.EFBIG, "File too large")
    with pytest.raises(ResourceError, match=r"ulimit -f"), running_ray(ScoreConfig()):
        pass
    ray.fault = RuntimeError("GCS died\nmore")
    with (
        pytest.raises(ProviderError, match=r"could not be started here: GCS died; look"),
        running_ray(ScoreConfig()),
    ):
        pass


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that stands in for wafervlm.score in the process that drives Ray; it notes its processes."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import os, subprocess, sys, time, types
from pathlib import Path

def drive(what, folder):
    if what == "raise":
        from wafervlm.errors import ResourceError
        raise ResourceError("it is full")
    if what == "die":
        os._exit(7)
    if what == "hang":
        other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
        (Path(folder) / "pids.part").write_text(f"{os.getpid()} {other.pid}")
        (Path(folder) / "pids.part").rename(Path(folder) / "pids")
        time.sleep(60)

if sys.orig_argv[1:3] == ["-m", "wafervlm.score_process"]:
    sys.modules["wafervlm.score"] = types.ModuleType("wafervlm.score")
    sys.modules["wafervlm.score"].drive = drive
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="Windows has no sessions")
def test_what_the_driving_process_says_arrives(driver: Path) -> None:
    drive_apart("work", driver)
    with pytest.raises(ResourceError, match="^it is full$"):
        drive_apart("raise", driver)
    with pytest.raises(ProviderError, match="ended with exit code 7; run the same command again"):
        drive_apart("die", driver)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no sessions")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_takes_the_driving_process_along(driver: Path, number: int) -> None:
    program = f"from wafervlm.score_process import drive_apart; drive_apart('hang', {str(driver)!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{driver}"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        wait_for((driver / "pids").exists)
        pids = [int(pid) for pid in (driver / "pids").read_text().split()]
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=30)
    assert (b"KeyboardInterrupt" in said) is (number == signal.SIGINT)
    wait_for(lambda: not any(is_alive(pid) for pid in pids))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_without_a_gpu_ray_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setattr("wafervlm.score_ray._import_ray", lambda: ray)
    monkeypatch.setattr("wafervlm.score_ray.driver_gpus", lambda: 0)
    with pytest.raises(ProviderError, match="there is no GPU here"), running_ray(ScoreConfig(device="cuda")):
        pass
    assert "init" not in ray.calls
    with running_ray(ScoreConfig(device="cuda", address="auto")):
        pass
    assert "init" in ray.calls


def engine_of(bundle: Path, folder: Path) -> Path:
    return write(open_bundle(bundle), folder / "engine")


def test_scores_begun_otherwise_are_not_gone_on_with(
    tmp_path: Path, archive: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores"

    def out_of_memory(*_: object) -> None:
        raise ResourceError("stopped here")

    monkeypatch.setattr("wafervlm.score.drive_apart", score.drive)
    monkeypatch.setattr("wafervlm.score._follow", out_of_memory)
    monkeypatch.setattr("wafervlm.score.running_ray", lambda config: contextlib.nullcontext(MagicMock()))
    monkeypatch.setattr("wafervlm.score._actors", lambda resources, config: (1, {}))
    answered = MagicMock(iter_rows=lambda: (row for row in [{"maps": 0}]))
    monkeypatch.setattr("wafervlm.score._answered", lambda *_: answered)
    with pytest.raises(ResourceError, match="stopped here"):
        score_archive([archive], out, ScoreConfig(toy_bundle))
    with pytest.raises(UsageError, match=r"begun otherwise \(part_maps changed\)"):
        score_archive([archive], out, ScoreConfig(toy_bundle, part_maps=3))
    with pytest.raises(UsageError, match=r"begun otherwise \(engine changed\)"):
        score_archive([archive], out, ScoreConfig(toy_bundle, engine=engine_of(toy_bundle, tmp_path)))
    (archive / "01.npy").unlink()
    with pytest.raises(UsageError, match=r"begun otherwise \(archive, maps changed\)"):
        score_archive([archive], out, ScoreConfig(toy_bundle))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(UsageError, match="is not empty"):
        score_archive([archive], tmp_path / "full", ScoreConfig(toy_bundle))
    for inside in (archive, archive / "scores"):
        with pytest.raises(UsageError, match="lies in the archive"):
            score_archive([archive], inside, ScoreConfig(toy_bundle))
