"""What the commands print: results on stdout, the rest on stderr."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest

from wafervlm import console

Capture = pytest.CaptureFixture[str]


def test_result_as_json_takes_numpy_and_paths(capsys: Capture) -> None:
    values = {"a": np.float32(0.5), "b": np.arange(3), "c": Path("x/y"), "d": {"é": None}}
    console.result(values, as_json=True)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert json.loads(out) == {"a": 0.5, "b": [0, 1, 2], "c": str(Path("x/y")), "d": {"é": None}}


def test_result_for_people_is_aligned_and_flat(capsys: Capture) -> None:
    console.result({"a": {"b": 0.123456789, "long": True}, "c": [1, 2], "d": None, "e": {}})
    assert capsys.readouterr().out.splitlines() == [
        "a.b     0.123457",
        "a.long  yes",
        "c       1, 2",
        "d       -",
        "e       {}",
    ]


@pytest.mark.parametrize("system", ["posix", "nt"])
def test_a_command_can_be_pasted_whatever_its_paths_hold(
    system: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(console, "os", SimpleNamespace(name=system))
    line = console.command("wafervlm", "predict", PurePosixPath("/my maps/a.npy"), "--batch", 4)
    console.next_command("wafervlm", "predict", "my map.npy")
    quote = "'" if system == "posix" else '"'
    assert line == f"wafervlm predict {quote}/my maps/a.npy{quote} --batch 4"
    assert capsys.readouterr().err == f"next: wafervlm predict {quote}my map.npy{quote}\n"


def test_settings_and_next_command_go_to_stderr(capsys: Capture) -> None:
    console.settings({"seed": 3})
    console.next_command("wafervlm", "verify")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "settings\n  seed  3\nnext: wafervlm verify\n"
