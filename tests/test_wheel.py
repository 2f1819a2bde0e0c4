"""The wheel: what is in it, how large it is, and that it answers where nothing else is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.wafervlm.toy import make_graph, make_head, make_wafers, write_bundle

ROOT = Path(__file__).resolve().parents[1]
MAX_WHEEL_BYTES = 10 * 10**6
MAX_DISTRIBUTIONS = 10
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
NO_NETWORK = ("Temporary failure in name resolution", "NewConnectionError", "Network is unreachable")


def command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout, every folder of it present."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "checkout", ignore=LEFT_OUT)
    done = command(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist"),
        cwd=folder / "checkout",
    )
    assert done.returncode == 0, done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an empty environment into which the wheel was installed with ``[cpu]``."""
    folder = tmp_path_factory.mktemp("station") / "env"
    venv.create(folder, symlinks=True)
    # The pip of this environment installs into the empty one, which so holds no pip itself.
    done = command(
        *(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"),
        *("--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]"),
    )
    if done.returncode and any(sign in done.stderr for sign in NO_NETWORK):
        pytest.skip(f"no package index can be reached: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    yield folder / "bin" / "python"
    shutil.rmtree(folder)


def test_only_the_station_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    (info,) = tops - {"wafervlm"}
    assert info.endswith(".dist-info")
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE", "wafervlm/py.typed"} <= names


def test_all_of_the_station_is_in_the_wheel(wheel: Path) -> None:
    """A new subpackage that setup.cfg does not list would be missing here."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("wafervlm/")}
    wanted = (
        *ROOT.glob("wafervlm/**/*.py"),
        *ROOT.glob("wafervlm/nano/bundle/*"),
        ROOT / "wafervlm/py.typed",
    )
    assert names == {path.relative_to(ROOT).as_posix() for path in wanted}


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES


def test_what_it_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    assert "Name: wafervlm" in lines
    assert "Requires-Python: >=3.10" in lines
    needs = {
        line.split(": ")[1] for line in lines if line.startswith("Requires-Dist") and "extra" not in line
    }
    assert {need.partition(">")[0] for need in needs} == {"numpy", "pillow", "click"}


def test_few_distributions_are_installed(python: Path) -> None:
    code = "from importlib.metadata import distributions as d; print(*sorted(x.name for x in d()), sep='\\n')"
    names = command(python, "-c", code).stdout.split()
    assert "onnxruntime" in names
    assert len(names) <= MAX_DISTRIBUTIONS, names


def test_it_predicts_there(python: Path, tmp_path: Path) -> None:
    """By its command, in a folder of its own, on a bundle and on the embedded one where it is shipped."""
    bundle = write_bundle(tmp_path / "toy", make_graph(make_head()), make_head())
    np.save(tmp_path / "map.npy", make_wafers(1)[0].dies)
    embedded = (ROOT / "wafervlm" / "nano" / "bundle" / "manifest.json").is_file()
    for choice in (["--bundle", bundle], *([[]] if embedded else [])):
        done = command(python.parent / "wafervlm", "predict", "map.npy", "--json", *choice, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        scores = json.loads(done.stdout)["scores"]
        assert abs(sum(scores.values()) - 1) < 1e-6
        assert command(python.parent / "wafervlm", "verify", *choice, cwd=tmp_path).returncode == 0
    assert command(python.parent / "wafervlm", "doctor", cwd=tmp_path).returncode == (0 if embedded else 4)


def test_a_workshop_command_says_what_to_install(python: Path, tmp_path: Path) -> None:
    """Though a folder called train lies where the command is called."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").write_text("raise SystemExit('a foreign train was run')")
    asked = [[name, "--help"] for name in ("train", "calibrate", "export", "run")]
    for arguments in [*asked, ["benchmark"], ["benchmark", "--reference", "merged"]]:
        done = command(python.parent / "wafervlm", *arguments, cwd=tmp_path)
        assert done.returncode == 4
        assert len(done.stderr.splitlines()) == 1
        assert "pip install -e '.[workshop]'" in done.stderr


def test_it_times_itself_there(python: Path, tmp_path: Path) -> None:
    """The part of benchmark that needs no workshop, which is also what its help tells of there."""
    bundle = write_bundle(tmp_path / "toy", make_graph(make_head()), make_head())
    program = python.parent / "wafervlm"
    assert "--latency" in command(program, "benchmark", "--help", cwd=tmp_path).stdout
    arguments = ("benchmark", "--latency", "--bundle", bundle, "--calls", 20, "--threads", 1, "--json")
    done = command(program, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["latency"][0]["calls"] == 20
