"""The command ``wafervlm calibrate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibrate.commands import calibrate
from calibrate.pack import load_quantized
from wafervlm.errors import ConfigError


def test_calibrate_writes_a_checkpoint_and_says_what_came_out(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gptq"
    arguments = [
        tiny_checkpoint,
        "-d",
        synthetic_dataset,
        "-o",
        out,
        "--group",
        "32",
        "--maps",
        "18",
        "--json",
    ]
    result = CliRunner().invoke(calibrate, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert figures["checkpoint"] == str(out)
    assert figures["kl"] < figures["kl_nearest"]
    assert "scheme.group      32" in result.stderr
    assert f"next: wafervlm export -m {out}" in result.stderr
    assert load_quantized(out).path == out


def test_settings_that_cannot_be_are_refused(
    tiny_checkpoint: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    arguments = [tiny_checkpoint, "-d", synthetic_dataset, "-o", tmp_path / "out", "--bits", "1"]
    with pytest.raises(ConfigError, match="bits is 1"):
        CliRunner().invoke(calibrate, [str(a) for a in arguments], catch_exceptions=False)


def test_help_has_an_example() -> None:
    result = CliRunner().invoke(calibrate, ["--help"])
    assert "wafervlm calibrate runs/merged -d runs/data -o runs/gptq" in result.output
