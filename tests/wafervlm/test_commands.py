"""predict and verify: what they print and where, and their exit codes. doctor is in test_doctor.py."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wafervlm
from tests.wafervlm.test_engine import write as write_engine
from tests.wafervlm.toy import LABELS
from wafervlm import WaferMap, cli, errors
from wafervlm.bundle import open_bundle
from wafervlm.commands import find_files
from wafervlm.options import read_bins
from wafervlm.render import render

ROOT = Path(wafervlm.__file__).parents[1]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def maps(tmp_path: Path, wafers: list[WaferMap]) -> Path:
    """A folder of three wafers: .npy, .csv with letters for bins, and .png in a folder below."""
    folder = tmp_path / "maps"
    (folder / "below").mkdir(parents=True)
    np.save(folder / "a.npy", wafers[0].dies)
    rows = [",".join(map(str, row)) for row in wafers[1].dies]
    (folder / "b.csv").write_text("\n".join(rows))
    (folder / "notes.md").write_text("not a wafer")
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_predict_says_what_the_library_says(toy_bundle: Path, maps: Path, capsys: Capture) -> None:
    assert run("predict", maps / "a.npy", "--bundle", toy_bundle, "--threads", 1) == 0
    said = capsys.readouterr()
    with wafervlm.load(toy_bundle, threads=1) as model:
        answer = model.predict(maps / "a.npy")
    name, label, confidence, _ = said.out.split("  ")
    assert (name, label, confidence) == (str(maps / "a.npy"), answer.label, f"{answer.confidence:.3f}")
    assert model.digest[:12] in said.err
    assert "next: wafervlm predict" in said.err


def test_what_is_suggested_can_be_pasted(toy_bundle: Path, maps: Path, capsys: Capture) -> None:
    bundle = toy_bundle.rename(toy_bundle.with_name("a bundle"))
    path = (maps / "a.npy").rename(maps / "a map.npy")
    assert run("predict", path, "--bundle", bundle, "--threads", 1) == 0
    suggested = capsys.readouterr().err.splitlines()[-1].removeprefix("next: ")
    wanted = ["wafervlm", "predict", str(path), "--bundle", str(bundle), "--plot", "answer.png"]
    assert shlex.split(suggested) == wanted
    assert run("predict", path, "--bundle", bundle, "--runtime", "tensorrt") == 2
    assert f"wafervlm engine --bundle '{bundle}' -o ENGINE" in capsys.readouterr().err


def test_json_gives_one_line_for_each_wafer(
    toy_bundle: Path, maps: Path, wafers: list[WaferMap], capsys: Capture
) -> None:
    with wafervlm.load(toy_bundle) as model:
        picture = render(wafers[2], model.task.render)
    Image.fromarray(picture).save(maps / "below" / "c.png")
    assert run("predict", maps, "--bundle", toy_bundle, "--json") == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [Path(line["path"]).name for line in lines] == ["a.npy", "b.csv", "c.png"]
    for line in lines:
        assert tuple(line["scores"]) == LABELS
        assert abs(sum(line["scores"].values()) - 1) < 1e-6
        assert line["locked"] is True
    assert "3 of 3 wafers" in said.err


def test_a_bad_file_is_reported_and_the_rest_go_on(toy_bundle: Path, maps: Path, capsys: Capture) -> None:
    (maps / "aa.npy").write_bytes(b"not an array")
    assert run("predict", maps, maps / "missing.npy", "--bundle", toy_bundle, "--json") == 1
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [("label" in line, "error" in line) for line in lines] == [
        (True, False),
        (False, True),
        (True, False),
        (False, True),
    ]
    assert "Error: " not in said.err, "said once, in the JSON"
    assert "2 of 4 wafers" in said.err
    assert run("predict", maps, maps / "missing.npy", "--bundle", toy_bundle) == 1
    said = capsys.readouterr()
    complaints = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert [sum(name in line for line in complaints) for name in ("aa.npy", "missing.npy")] == [1, 1]


def test_bins_are_mapped(toy_bundle: Path, maps: Path, wafers: list[WaferMap], capsys: Capture) -> None:
    letters = np.array([".", "P", "F"])[wafers[1].dies]
    (maps / "b.csv").write_text("\n".join(",".join(row) for row in letters))
    assert run("predict", maps / "b.csv", "--bundle", toy_bundle) == 1
    assert "is not mapped; say what each code means, as in --bins .=0,P=1,F=2 (" in capsys.readouterr().err
    assert run("predict", maps / "b.csv", "--bundle", toy_bundle, "--bins", ".=0,P=pass,F=2", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["wafer"]["digest"] == wafers[1].digest
    assert "bins           .=0, P=1, F=2" in said.err


def test_a_foreign_image_is_refused_or_marked(toy_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    assert run("predict", tmp_path / "photo.png", "--bundle", toy_bundle) == 1
    said = capsys.readouterr().err
    assert "not a wafer map of this task" in said and "--foreign takes it as it is" in said
    assert run("predict", tmp_path / "photo.png", "--bundle", toy_bundle, "--foreign") == 0
    assert "outside the lock" in capsys.readouterr().out


def test_plot_draws_one_wafer(toy_bundle: Path, maps: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run("predict", maps / "a.npy", "--bundle", toy_bundle, "--plot", tmp_path / "answer.png") == 0
    with Image.open(tmp_path / "answer.png") as picture:
        assert (picture.format, picture.width) == ("PNG", 960)
    assert run("predict", maps, "--bundle", toy_bundle, "--plot", tmp_path / "other.png") == 2
    assert not (tmp_path / "other.png").exists()
    assert "--plot draws one wafer" in capsys.readouterr().err


def test_a_picture_is_drawn_over_a_picture_and_nothing_else(
    toy_bundle: Path, maps: Path, wafers: list[WaferMap], tmp_path: Path, capsys: Capture
) -> None:
    wafer = maps / "a.npy"
    with wafervlm.load(toy_bundle) as model:
        Image.fromarray(render(wafers[2], model.task.render)).save(maps / "c.png")
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(maps / "c.png")
    refused = {
        wafer: (wafer, "is not named as one"),
        tmp_path / "x.jpg": (wafer, "is not named as one"),
        maps / "c.png": (maps / "c.png", "the wafer itself"),
        tmp_path / "link.png": (maps / "c.png", "the wafer itself"),
        tmp_path / "notes.png": (wafer, "which is no PNG file"),
        tmp_path / "folder.png": (wafer, "is a directory"),
        tmp_path / "no such" / "x.png": (wafer, "there is no such folder"),
    }
    before = {path: path.read_bytes() for path in (wafer, maps / "c.png", tmp_path / "notes.png")}
    for picture, (path, words) in refused.items():
        assert run("predict", path, "--bundle", toy_bundle, "--plot", picture) == 2
        said = capsys.readouterr()
        assert words in said.err and said.out == "", "known before anything is answered"
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "answer.png").write_bytes(before[maps / "c.png"])
    assert run("predict", wafer, "--bundle", toy_bundle, "--plot", tmp_path / "answer.png") == 0
    with Image.open(tmp_path / "answer.png") as picture:
        assert picture.width == 960
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_more_threads_than_cores_are_refused(
    toy_bundle: Path, maps: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wafervlm.cores.usable_cores", lambda: 2)
    for command in (("predict", maps), ("verify",), ("describe", maps / "a.npy"), ("benchmark", "--latency")):
        assert run(*command, "--bundle", toy_bundle, "--threads", 3) == 2
        assert "threads is 3, and the cores that this process may use are 2" in capsys.readouterr().err
    with wafervlm.load(toy_bundle, threads=2) as model:
        assert model.runtime == "onnx"


def test_a_picture_of_what_is_not_checked_is_refused_at_once(
    maps: Path, tmp_path: Path, capsys: Capture
) -> None:
    picture = tmp_path / "described.png"
    assert run("describe", maps / "a.npy", "--no-check", "--plot", picture) == 2
    shown = capsys.readouterr()
    assert "leave --no-check away" in shown.err and not shown.out and not picture.exists()


def test_a_file_that_may_not_grow_is_told_with_what_to_do(
    toy_bundle: Path, maps: Path, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    command = [sys.executable, "-m", "wafervlm.cli", "predict", maps / "a.npy", "--bundle", toy_bundle]
    done = subprocess.run(
        [*map(str, command), "--plot", str(tmp_path / "answer.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
    )
    assert done.returncode == 4, done.stderr
    assert "answer.png" in done.stderr and "(ulimit -f): raise that" in done.stderr
    assert not list(tmp_path.glob("*answer.png*"))


def test_a_changed_bundle_ends_with_3(toy_bundle: Path, maps: Path, capsys: Capture) -> None:
    graph = next(toy_bundle.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    assert run("predict", maps, "--bundle", toy_bundle) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments", [[], ["--threads", "0", "a.npy"], ["--timeout", "0", "a.npy"], ["--theads", "2", "a.npy"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: Capture) -> None:
    assert run("predict", *arguments) == 2
    assert "Usage: " in capsys.readouterr().err


def test_a_folder_without_wafers_is_named(tmp_path: Path, capsys: Capture) -> None:
    assert run("predict", tmp_path) == 2
    assert f"{tmp_path} holds no file" in capsys.readouterr().err


def test_progress_is_told_where_answers_go_to_a_file(
    toy_bundle: Path, maps: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wafervlm.commands.SECONDS_BETWEEN_NOTES", 0.0)
    assert run("predict", maps, "--bundle", toy_bundle) == 0
    assert "1/2 wafers, " in capsys.readouterr().err


def test_files_are_found_in_order_and_named_ones_kept(maps: Path) -> None:
    found = find_files([maps / "notes.md", maps])
    assert [path.name for path in found] == ["notes.md", "a.npy", "b.csv"]


@pytest.mark.parametrize(
    "text, table",
    [
        (".=0,1=pass,X=fail", {".": 0, "1": 1, "X": 2}),
        ("a=none,==1", {"a": 0, "=": 1}),
        ("P=Pass", {"P": 1}),
    ],
)
def test_tables_of_bins(text: str, table: dict[str, int]) -> None:
    assert read_bins(text) == table


def test_a_file_of_bins(tmp_path: Path) -> None:
    (tmp_path / "bins.json").write_text('{"P": 1, "F": "fail", "?": 0}')
    assert read_bins(str(tmp_path / "bins.json")) == {"P": 1, "F": 2, "?": 0}


@pytest.mark.parametrize("text", ["P=1,P=2", "P=3", "P=", "P", "", "[1]", "{}", "P=1,F"])
def test_bins_that_cannot_be_meant(text: str, tmp_path: Path) -> None:
    if text in ("[1]", "{}"):
        (tmp_path / "bins.json").write_text(text)
        text = str(tmp_path / "bins.json")
    with pytest.raises(errors.UsageError, match="--bins"):
        read_bins(text)


def test_a_full_disk_is_told(
    toy_bundle: Path, maps: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full on this system")

    def full(_: Path, data: bytes) -> None:
        with open("/dev/full", "wb", 0) as file:
            file.write(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    code = run("predict", maps / "a.npy", "--bundle", toy_bundle, "--plot", tmp_path / "answer.png")
    assert code == 4
    assert "the disk is full" in capsys.readouterr().err


def test_ctrl_c_ends_at_once_with_130_and_no_traceback(tmp_path: Path, toy_bundle: Path) -> None:
    """A folder of many wafers, interrupted after its first answer."""
    for number in range(3000):
        np.save(tmp_path / f"{number}.npy", np.ones((9, 9), np.uint8))
    command = [
        sys.executable,
        "-u",
        "-m",
        "wafervlm.cli",
        "predict",
        str(tmp_path),
        "--bundle",
        str(toy_bundle),
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with interrupts ignored, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err[-2000:]
    assert time.monotonic() - started < 5
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_defect(toy_bundle: Path, tmp_path: Path) -> None:
    for number in range(300):
        np.save(tmp_path / f"{number}.npy", np.ones((9, 9), np.uint8))
    line = f"{sys.executable} -m wafervlm.cli predict {tmp_path} --bundle {toy_bundle} | head -n 1"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_verify_reports_both_levels(toy_bundle: Path, capsys: Capture) -> None:
    assert run("verify", "--bundle", toy_bundle, "--json") == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["exact"]["max_abs_difference"] <= report["exact"]["tolerance"] == 1e-3
    assert report["deployed"]["label_agreement"] == 1
    assert said.err.splitlines()[-1] == f"next: wafervlm predict map.npy --bundle {toy_bundle}"


def test_verify_for_people(toy_bundle: Path, capsys: Capture) -> None:
    assert run("verify", "--bundle", toy_bundle) == 0
    said = capsys.readouterr()
    digest = open_bundle(toy_bundle).digest
    assert said.out.splitlines()[:2] == [f"bundle {digest}", "6 golden maps on onnx"]
    assert re.fullmatch(
        r"passed: at exact accuracy \S+ off where 0.001 is allowed; as deployed \S+ off where 0.2 is allowed",
        said.out.splitlines()[-1],
    )
    assert f"(toy {digest[:12]})" in said.err and "runtime  onnx" in said.err


def test_verify_compares_the_digest_that_was_noted(toy_bundle: Path, capsys: Capture) -> None:
    digest = open_bundle(toy_bundle).digest
    for noted, code in (
        (digest, 0),
        (digest[:12].upper(), 0),
        (digest[:11], 2),
        ("z" * 12, 2),
        ("0" * 12, 3),
        (digest[:63] + ("0" if digest[63] != "0" else "1"), 3),
    ):
        assert run("verify", "--bundle", toy_bundle, "--digest", noted) == code, noted
    assert f"has digest {digest} and not" in capsys.readouterr().err


def test_a_mistyped_path_is_usage_and_a_mix_up_is_named(
    toy_bundle: Path, maps: Path, tmp_path: Path, capsys: Capture
) -> None:
    engine = write_engine(open_bundle(toy_bundle), tmp_path / "engine")
    for options, words in (
        (("--bundle", tmp_path / "nowhere"), "there is no bundle folder"),
        (("--bundle", toy_bundle, "--engine", tmp_path / "nowhere"), "there is no engine folder"),
        (("--bundle", engine), "is of an engine folder, not of a bundle; name it with --engine"),
        (("--bundle", toy_bundle, "--engine", toy_bundle), "is of a bundle folder, not of an engine"),
    ):
        assert run("predict", maps / "a.npy", *options) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["golden.npz", "manifest.json"])
def test_verify_ends_with_3_where_a_file_is_gone(name: str, toy_bundle: Path, capsys: Capture) -> None:
    (toy_bundle / name).unlink()
    assert run("verify", "--bundle", toy_bundle) == 3
    assert name in capsys.readouterr().err


def test_a_read_only_bundle_in_a_read_only_folder_serves(
    toy_bundle: Path, maps: Path, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    shutil.copytree(toy_bundle, locked / "bundle")
    for path in (*locked.rglob("*"), locked):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert run("verify", "--bundle", locked / "bundle") == 0
        assert run("predict", maps / "a.npy", "--bundle", locked / "bundle") == 0
    finally:
        for path in (locked, locked / "bundle"):
            path.chmod(0o755)
