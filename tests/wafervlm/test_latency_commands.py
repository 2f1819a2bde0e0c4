"""``wafervlm benchmark --latency`` is of the station: it runs where there is no workshop."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wafervlm
from wafervlm import cli, view
from wafervlm.errors import MissingDependencyError
from wafervlm.latency import PARTS
from wafervlm.model import WaferVLM

ROOT = Path(wafervlm.__file__).parents[1]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The package alone, as a wheel installs it."""
    site = tmp_path / "site-packages"
    shutil.copytree(ROOT / "wafervlm", site / "wafervlm", ignore=shutil.ignore_patterns("__pycache__"))
    return site


def ask(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from wafervlm.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'train', 'benchmarks', 'psutil', 'scipy'} & set(sys.modules)\n"
        "print(*heavy, file=sys.stderr); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        cwd=site,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_bundle_is_timed_where_there_is_no_workshop(bare: Path, toy_bundle: Path) -> None:
    arguments = ("--bundle", toy_bundle, "--threads", 1, "--calls", 30, "--batch", 4, "--json")
    done = ask(bare, "benchmark", "--latency", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "", "nothing of the workshop is imported"
    summary = json.loads(done.stdout)
    assert summary["runtime"] == "onnx"
    assert summary["threads"] == 1
    assert [(timed["batch"], timed["calls"]) for timed in summary["latency"]] == [(1, 30), (4, 10)]
    for timed in summary["latency"]:
        figures = timed["ms"]
        assert set(figures) == set(PARTS)
        assert figures["total"]["minimum"] <= figures["total"]["p50"] <= figures["total"]["p99"]
        parts = sum(figures[part]["mean"] for part in ("read", "render", "run"))
        assert 0 < parts <= figures["total"]["mean"]
        assert timed["wafers_per_second"] == pytest.approx(1e3 * timed["batch"] / figures["total"]["mean"])
    size = sum(path.stat().st_size for path in toy_bundle.iterdir()) / 2**20
    assert summary["disk_mib"] == pytest.approx(size)
    assert summary["load_ms"] > 0
    assert 20 < summary["peak_mib"] < 2000
    assert summary["machine"]["versions"]["numpy"] == np.__version__


def test_people_get_a_table_and_no_json(toy_bundle: Path, capsys: Capture) -> None:
    arguments = ["--bundle", str(toy_bundle), "--calls", "5", "--threads", "1"]
    assert cli.main(["benchmark", "--latency", *arguments]) == 0
    head, first, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["milliseconds", "p50", "p90", "p99"]
    assert first.startswith("one wafer, 5 calls")
    assert not any("{" in line for line in rest)


def test_json_prints_nothing_else(
    toy_bundle: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "maps").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "maps"))
    arguments = ["--bundle", str(toy_bundle), "--calls", "5", "--threads", "1", "--json"]
    assert cli.main(["benchmark", "--latency", *arguments]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert [timed["batch"] for timed in json.loads(line)["latency"]] == [1]
    assert "calls" in said.err
    assert not list((tmp_path / "maps").iterdir()), "the maps are removed"


def test_no_map_is_read_twice(toy_bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    real = view.make_view

    def noted(item: Any, *others: Any) -> view.View:
        read.append(Path(item).read_bytes())
        return real(item, *others)

    monkeypatch.setattr("wafervlm.model.make_view", noted)
    arguments = ["--bundle", str(toy_bundle), "--calls", "5", "--threads", "1", "--json"]
    assert cli.main(["benchmark", "--latency", *arguments, "--warmup", "2", "--batch", "3"]) == 0
    timed = json.loads(capsys.readouterr().out)["latency"]
    assert [(each["batch"], each["calls"]) for each in timed] == [(1, 5), (3, 10)]
    assert len(set(read)) == len(read) == 1 + (2 + 5) + 3 * (2 + 10)


def test_figures_are_given_where_the_gpu_cannot_be_named(
    toy_bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Any:
        raise MissingDependencyError("cuda-python cannot be used")

    monkeypatch.setattr("wafervlm.runtimes.cuda.find_gpu", none)
    monkeypatch.setattr(WaferVLM, "runtime", "onnx-cuda")
    assert cli.main(["benchmark", "--latency", "--bundle", str(toy_bundle), "--calls", "3", "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert summary["gpu"] is None
    assert summary["latency"][0]["calls"] == 3
    assert "the GPU is not named: cuda-python cannot be used" in said.err


def test_the_runtime_is_chosen(toy_bundle: Path, capsys: Capture) -> None:
    pytest.importorskip("openvino")
    arguments = [
        "--bundle",
        str(toy_bundle),
        "--calls",
        "5",
        "--threads",
        "1",
        "--runtime",
        "openvino",
        "--json",
    ]
    assert cli.main(["benchmark", "--latency", *arguments]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runtime"].startswith("openvino")


def test_without_it_a_bare_package_says_what_to_install(bare: Path) -> None:
    done = ask(bare, "benchmark", "--bundle", "bundle", "--reference", "merged")
    assert (done.returncode, done.stdout) == (4, "")
    assert "pip install -e '.[workshop]'" in done.stderr


def test_help_shows_it(bare: Path, capsys: Capture) -> None:
    assert "--latency" in ask(bare, "benchmark", "--help").stdout
    assert cli.main(["benchmark", "--latency", "--help"]) == 0
    assert "--runtime" in capsys.readouterr().out
    assert cli.main(["--help"]) == 0
    assert "(--latency)" in " ".join(capsys.readouterr().out.split())


def test_the_workshops_help_shows_it(capsys: Capture) -> None:
    pytest.importorskip("benchmarks.commands")
    assert cli.main(["benchmark", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--latency" in said
    assert "--reference" in said


def test_what_cannot_be_meant_ends_with_2(toy_bundle: Path, capsys: Capture) -> None:
    assert cli.main(["benchmark", "--latency", "--bundle", str(toy_bundle), "--reference", "merged"]) == 2
    assert "--reference" in capsys.readouterr().err
