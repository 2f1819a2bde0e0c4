"""Each part in a process of its own. What is measured in it is scripted here; test_run has the real rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.device import Device
from benchmarks.gpu.nvml import Telemetry
from benchmarks.gpu.parts import parts_of, run_parts
from benchmarks.gpu.run import open_results
from benchmarks.gpu.settings import Settings
from wafervlm.errors import UsageError

ROOT = Path(__file__).resolve().parents[3]
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "maps": 16, "config_folder": Path("none")}


def measured(settings: Settings, out: Path) -> None:
    """One row with the budget that was given and the process; the 4b shape does not live to its second."""
    device = Device(settings.device)
    results = open_results(settings, out, device, Telemetry(device))
    name = settings.shapes[0] if settings.shapes else "bundles"
    results.put(f"{name}/first", {"status": "ok", "budget": settings.budget, "process": os.getpid()})
    if name == "4b":
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.5)
    results.put(f"{name}/second", {"status": "ok"})


def well(settings: Settings, out: Path) -> None:
    device = Device(settings.device)
    open_results(settings, out, device, Telemetry(device)).put(
        f"{settings.shapes[0]}/second", {"status": "ok"}
    )


def lingering(settings: Settings, out: Path) -> None:
    (out.parent / "process").write_text(str(os.getpid()))
    time.sleep(120)


def within(seconds: float, happens: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]}


def test_a_part_that_dies_takes_no_other_with_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    settings = Settings(shapes=("4b", "nano"), bundles=(tmp_path,), budget=600.0, **OPTIONS)
    run_parts(settings, out, measured)
    rows = rows_of(out)
    assert rows["4b/process"]["status"] == "failed: the process ended by signal 11"
    assert "4b: the process that measured it ended by signal 11" in capfd.readouterr().err
    assert rows.keys() == {
        *("4b/first", "4b/process", "nano/first", "nano/second", "bundles/first", "bundles/second")
    }
    assert len({rows[f"{name}/first"]["process"] for name in ("4b", "nano", "bundles")} - {os.getpid()}) == 3
    # An equal share, and what the one before left.
    budgets = [rows[f"{name}/first"]["budget"] for name in ("4b", "nano", "bundles")]
    assert 150 < budgets[0] < 200 < budgets[1] < budgets[2] < 600
    run_parts(Settings(shapes=("4b",), **OPTIONS), out, well)
    assert rows_of(out).keys() == {*rows, "4b/second"} - {"4b/process"}


def test_every_shape_is_a_part_and_all_bundles_are_one(tmp_path: Path) -> None:
    settings = Settings(shapes=("4b", "7b"), bundles=(tmp_path, tmp_path / "b"), **OPTIONS)
    parts = parts_of(settings)
    assert [name for name, _ in parts] == ["4b", "7b", "bundles"]
    assert [part.shapes for _, part in parts] == [("4b",), ("7b",), ()]
    assert [len(part.bundles) for _, part in parts] == [0, 0, 2]
    assert [name for name, _ in parts_of(Settings(shapes=("4b",), **OPTIONS))] == ["4b"]


def test_a_result_of_something_else_is_refused_before_a_process_starts(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run_parts(Settings(shapes=("nano",), **OPTIONS), out, well)
    with pytest.raises(UsageError, match="choose another --out"):
        run_parts(Settings(shapes=("nano",), **{**OPTIONS, "maps": 17}), out, well)


def test_a_part_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu.parts import run_parts;"
        "from tests.benchmarks.gpu.test_parts import OPTIONS, lingering;"
        "from benchmarks.gpu.settings import Settings;"
        "run_parts(Settings(shapes=('nano',), **OPTIONS), Path(sys.argv[1]), lingering)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "results.json")]
    with subprocess.Popen(command, cwd=ROOT) as parent:
        written = tmp_path / "process"
        assert within(60, lambda: written.exists() and bool(written.read_text()))
        parent.kill()
    assert within(20, lambda: not Path(f"/proc/{written.read_text()}").exists())
