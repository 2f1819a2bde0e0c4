"""The doctor finds what is really amiss: most tests break something real and ask it in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wafervlm
from wafervlm import cli, doctor
from wafervlm.doctor import State

ROOT = Path(wafervlm.__file__).parents[1]
NAMES = ["python", "numpy", "pillow", "click", "onnxruntime", "nano bundle", "cores", "workshop", "disk"]


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
    sometimes = ("runtimes", "torchvision", "openvino", "tensorrt", "tensorrt_rtx", "gpu")
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
    assert found["onnxruntime"].found.startswith(ort.__version__)
    assert "CPU" in found["onnxruntime"].found
    assert found["onnxruntime"].state is State.OK


def test_a_missing_runtime_is_missing(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such library')")
    code, found = ask(tmp_path)
    assert code == 4
    assert found["onnxruntime"]["state"] == "missing"
    assert "no such library" in found["onnxruntime"]["found"]
    assert "wafervlm[cpu]" in found["onnxruntime"]["advice"]


def test_an_emptied_runtime_is_missing(tmp_path: Path) -> None:
    """What is left when one of the two builds is uninstalled: a folder that imports and holds nothing."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    code, found = ask(tmp_path)
    assert code == 4
    assert "--force-reinstall" in found["onnxruntime"]["advice"]


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
