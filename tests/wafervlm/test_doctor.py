"""The doctor finds what is really amiss: most tests break something real and ask it in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wafervlm
from wafervlm import cli, doctor
from wafervlm.capabilities import State

ROOT = Path(wafervlm.__file__).parents[1]
NAMES = [
    *("python", "numpy", "pillow", "click"),
    *("predict, onnx", "predict, onnx-cuda", "predict, openvino", "predict, tensorrt"),
    *("describe", "check of words", "score", "nano bundle", "cores", "workshop", "disk"),
]


def ask(path: Path, *, before: str = "") -> tuple[int, dict[str, dict[str, str]]]:
    """Run ``wafervlm doctor --json`` with ``path`` first on sys.path, after the code ``before``."""
    code = f"{before}\nimport sys; from wafervlm.cli import main; sys.exit(main(['doctor', '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    checks = json.loads(done.stdout)["checks"]
    return done.returncode, {check["name"]: check for check in checks}


def pretend_installed(folder: Path, name: str, version: str = "9.9") -> None:
    """Write the metadata of a distribution, which is what an installer leaves."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_everything_is_looked_at_with_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    checks = doctor.examine()
    sometimes = ("runtimes", "torchvision")
    assert [check.name for check in checks if check.name not in sometimes] == NAMES
    missing = any(check.state is State.MISSING for check in checks)
    assert cli.main(["doctor"]) == (4 if missing else 0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(checks)
    for line, check in zip(lines, checks, strict=True):
        assert line.split()[0] == check.state.value
        assert check.name in line
        assert check.found.splitlines()[0] in line


def test_what_is_here_is_found() -> None:
    import numpy as np
    import onnxruntime as ort

    found = {check.name: check for check in doctor.examine()}
    assert found["numpy"].found == np.__version__
    assert found["predict, onnx"].found.startswith(f"onnxruntime {ort.__version__}")
    assert "CPU" in found["predict, onnx"].found
    assert found["predict, onnx"].state is State.OK
    assert found["describe"].state is found["check of words"].state is State.OK


BLOCK = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.partition('.')[0] in {names}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Block())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *_: None if name.partition('.')[0] in {names} else real(name)
"""


def without(*names: str) -> str:
    """Code after which ``names`` are as if they were not installed."""
    return BLOCK.format(names=set(names))


def test_nothing_that_can_predict_is_missing(tmp_path: Path) -> None:
    runtimes = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    code, found = ask(tmp_path, before=without(*runtimes))
    assert code == 4
    assert found["predict"]["state"] == "missing"
    assert found["predict"]["advice"] == "run: pip install 'wafervlm[cpu]'"
    for name, extra in (("onnx", "cpu"), ("onnx-cuda", "gpu"), ("openvino", "openvino")):
        check = found[f"predict, {name}"]
        assert check["state"] == "absent"
        assert check["advice"] == f"run: pip install 'wafervlm[{extra}]'"
    assert found["describe"]["advice"] == "run: pip install 'wafervlm[cpu,words]'"


def test_one_runtime_is_enough_and_extras_are_named(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    lost = ("onnxruntime", "tensorrt", "tensorrt_rtx", "tokenizers", "scipy", "ray")
    code, found = ask(tmp_path, before=without(*lost))
    assert code == 0
    assert "predict" not in found and found["predict, openvino"]["state"] == "ok"
    assert found["check of words"]["found"] == "lacks scipy"
    assert found["check of words"]["advice"] == "run: pip install 'wafervlm[words]'"
    assert found["score"]["advice"] == "run: pip install 'wafervlm[archive]'"


def test_a_runtime_alone_predicts_or_is_named(tmp_path: Path, toy_bundle: Path) -> None:
    """What ``pip install 'wafervlm[openvino]'`` alone must do."""
    pytest.importorskip("openvino")
    np.save(tmp_path / "map.npy", np.ones((9, 9), np.uint8))

    def predict(*options: str) -> subprocess.CompletedProcess[str]:
        words = [
            "predict",
            str(tmp_path / "map.npy"),
            "--bundle",
            str(toy_bundle),
            "--threads",
            "1",
            *options,
        ]
        code = f"{without('onnxruntime')}\nimport sys; from wafervlm.cli import main; sys.exit(main({words}))"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )

    plain = predict()
    assert plain.returncode == 4
    assert "onnxruntime is not installed; install it with: pip install 'wafervlm[cpu]'" in plain.stderr
    assert "take --runtime openvino, which is installed" in plain.stderr
    chosen = predict("--runtime", "auto")
    assert chosen.returncode == 0, chosen.stderr
    assert (
        "not onnx: onnxruntime is not installed" in chosen.stderr
        and "runtime        openvino" in chosen.stderr
    )


def test_a_broken_runtime_is_told_from_an_absent_one(tmp_path: Path) -> None:
    for name in ("onnxruntime", "openvino"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('no such library')")
    code, found = ask(tmp_path, before=without("tensorrt", "tensorrt_rtx"))
    assert code == 4
    assert found["predict, onnx"]["state"] == "look"
    assert found["predict, onnx"]["found"] == "onnxruntime is installed and cannot be used (no such library)"
    assert "wafervlm[cpu]' with --force-reinstall" in found["predict, onnx"]["advice"]
    assert "wafervlm[cpu]' with --force-reinstall" in found["predict"]["advice"]


def test_an_emptied_runtime_is_broken(tmp_path: Path) -> None:
    """What is left when one of the two builds is uninstalled: a folder that imports and holds nothing."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    _, found = ask(tmp_path)
    assert found["predict, onnx"]["state"] == "look"
    assert "--force-reinstall" in found["predict, onnx"]["advice"]


def test_both_builds_of_the_runtime_are_told(tmp_path: Path) -> None:
    pretend_installed(tmp_path, "onnxruntime-gpu")
    _, found = ask(tmp_path)
    assert found["runtimes"]["state"] == "look"
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found["runtimes"]["advice"]
    assert "runtimes" not in {check.name for check in doctor.examine()}


def test_a_broken_station_part_is_missing(tmp_path: Path) -> None:
    (tmp_path / "PIL.py").write_text("raise ImportError('wrong architecture')")
    code, found = ask(tmp_path)
    assert (code, found["pillow"]["state"]) == (4, "missing")
    assert "wrong architecture" in found["pillow"]["found"]


@pytest.mark.parametrize("broken", [False, True])
def test_torchvision(tmp_path: Path, broken: bool) -> None:
    pretend_installed(tmp_path, "torchvision")
    line = "raise RuntimeError('operator torchvision::nms does not exist')" if broken else ""
    (tmp_path / "torchvision.py").write_text(line)
    _, found = ask(tmp_path)
    assert found["torchvision"]["state"] == ("look" if broken else "ok")
    assert ("nms does not exist" in found["torchvision"]["found"]) is broken
    assert ("pip uninstall torchvision" in found["torchvision"]["advice"]) is broken


def test_a_damaged_bundle_is_missing(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wafervlm.bundle.EMBEDDED", toy_bundle)
    assert _state("nano bundle") is State.OK
    graph = next(toy_bundle.glob("*.onnx"))
    graph.write_bytes(b"x" * graph.stat().st_size)
    assert _state("nano bundle") is State.MISSING


def _state(name: str) -> State:
    return next(check.state for check in doctor.examine() if check.name == name)


def test_fewer_cores_than_there_are(tmp_path: Path) -> None:
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("cores cannot be taken away on this machine")
    _, found = ask(tmp_path, before="import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])")
    assert found["cores"]["state"] == "look"
    assert "--threads 1" in found["cores"]["advice"]


def test_missing_workshop_parts_are_named_and_do_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WORKSHOP", ("numpy", "a-distribution-that-is-not-there"))
    checks: dict[str, Any] = {check.name: check for check in doctor.examine()}
    assert checks["workshop"].state is State.LOOK
    assert checks["workshop"].found == "lacks a-distribution-that-is-not-there"


def test_every_workshop_part_is_in_the_extra() -> None:
    """What the doctor looks for is what the extra installs."""
    text = (ROOT / "pyproject.toml").read_text()
    extra = text.partition("workshop = [")[2].partition("]")[0]
    names = {line.strip(' ",').partition(">")[0] for line in extra.splitlines() if line.strip()}
    assert names == {*doctor.WORKSHOP, "onnxruntime"}
