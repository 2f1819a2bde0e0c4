"""The package as a whole: its public names, what importing and loading cost, and that it leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import wafervlm
from tests.wafervlm.toy import LABELS
from wafervlm import WaferMap
from wafervlm.bundle import EMBEDDED

QUIET = """
import os, sys
bundle, wafer = sys.argv[1:]
opened, sockets = [], []

def watch(event, args):
    if event == "open":
        flags = args[2] if isinstance(args[2], int) else 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            opened.append(str(args[0]))
    elif event.startswith("socket.") or event in ("os.mkdir", "os.rename", "subprocess.Popen"):
        sockets.append(event)
        raise OSError("not in this test")

sys.addaudithook(watch)
import wafervlm
assert "onnxruntime" not in sys.modules
with wafervlm.load(bundle, threads=1) as model:
    answer = model.predict(wafer)
    batch = model.predict_batch([wafer] * 3)
    held = []
    if os.path.isdir("/proc/self/fd"):
        for number in os.listdir("/proc/self/fd"):
            try:
                held.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                pass
assert not opened, opened
assert not sockets, sockets
assert not [name for name in held if name.startswith("socket:")], held
print(answer.label)
"""


def test_nothing_is_written_and_nothing_is_fetched(
    toy_bundle: Path, wafers: list[WaferMap], tmp_path: Path
) -> None:
    """In a process whose folders are read-only and whose sockets fail, a prediction leaves no trace."""
    home = tmp_path / "home"
    home.mkdir()
    np.save(tmp_path / "wafer.npy", wafers[0].dies)
    for folder in (home, toy_bundle):
        folder.chmod(0o555)
    before = _snapshot(tmp_path)
    places = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME", "USERPROFILE"), str(home))
    environment = {**os.environ, **places, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(_root())}
    command = [sys.executable, "-c", QUIET, str(toy_bundle), str(tmp_path / "wafer.npy")]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=60)
    for folder in (home, toy_bundle):
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in LABELS
    assert _snapshot(tmp_path) == before


def _root() -> Path:
    return Path(wafervlm.__file__).parents[1]


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def test_import_is_light() -> None:
    """CPU time of the import in a new process; the public names bring neither a runtime nor Pillow."""
    code = (
        "import sys, time; t = time.process_time(); import wafervlm; t = time.process_time() - t;"
        "assert 'numpy' not in sys.modules; from wafervlm import *; assert load and WaferMap;"
        "heavy = {'onnxruntime', 'torch', 'PIL.Image', 'scipy'} & set(sys.modules);"
        "assert not heavy, heavy; print(t)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_root(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


@pytest.mark.parametrize("which", ["toy", "embedded"])
def test_loads_within_a_second(shared_toy_bundle: Path, which: str) -> None:
    """CPU time of a first load in a new process, the import of the runtime included."""
    code = (
        "import sys, time; t = time.process_time(); import wafervlm;"
        "wafervlm.load(sys.argv[1], threads=1); print(time.process_time() - t)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(shared_toy_bundle if which == "toy" else EMBEDDED)],
        cwd=_root(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1


def test_public_names_are_these() -> None:
    nouns = {"load", "WaferVLM", "WaferMap", "Prediction", "Description", "Task"}
    raised = {
        name
        for name, value in vars(wafervlm.errors).items()
        if isinstance(value, type) and issubclass(value, (wafervlm.WaferVLMError, wafervlm.WaferVLMWarning))
    }
    assert set(wafervlm.__all__) == nouns | raised
    assert all(getattr(wafervlm, name) is not None for name in wafervlm.__all__)
    assert set(wafervlm.__all__) <= set(dir(wafervlm))
    with pytest.raises(AttributeError, match="predict"):
        wafervlm.predict  # type: ignore[attr-defined]  # noqa: B018
