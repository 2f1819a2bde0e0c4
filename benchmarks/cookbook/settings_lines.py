"""The settings of a training as a settings file of the tree and what to set otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.config import flat_dict, read_settings
from train.rl.settings import flat_settings, read_rl_settings
from train.settings_file import read_table

_TRAIN = Path(__file__).resolve().parents[2] / "train"


def training(settings: Mapping[str, Any]) -> list[object]:
    """The words that give ``wafervlm train`` the recorded ``settings`` of a fine-tuning."""
    file, overrides = _nearest(
        settings,
        [*_TRAIN.glob("*.toml"), *_TRAIN.glob("nano/*.toml")],
        lambda file: flat_dict(read_settings(file)[0]),
    )
    return [*_launched(settings), "train", file, *overrides]


def reinforcing(settings: Mapping[str, Any]) -> list[object]:
    """The words that give ``wafervlm train`` the recorded ``settings`` of a reinforcement learning."""
    files = [*_TRAIN.glob("nano/*.toml"), *_TRAIN.glob("recipes/rl/*.toml")]
    file, overrides = _nearest(settings, files, lambda file: flat_settings(read_rl_settings(file)), rl=True)
    return ["wafervlm", "train", "--config", file, *overrides]


def _launched(settings: Mapping[str, Any]) -> list[object]:
    processes = settings.get("processes", 1)
    if processes == 1:
        return ["wafervlm"]
    return ["accelerate", "launch", "--num_processes", processes, "-m", "wafervlm.cli"]


def _nearest(
    settings: Mapping[str, Any],
    files: Sequence[Path],
    read: Callable[[Path], dict[str, Any]],
    *,
    rl: bool = False,
) -> tuple[str, list[object]]:
    """The settings file that says most of ``settings``, and the words that set the rest."""
    found: list[tuple[int, str, list[str]]] = []
    for file in sorted(files):
        table = read_table(file)
        if ("rl" in table) is not rl or not set(table) <= {"model", "data", "lora", "train", "rl", "reward"}:
            continue
        says = read(file)
        others = [key for key in settings if key in says and says[key] != settings[key]]
        found.append((len(others), file.relative_to(_TRAIN.parent).as_posix(), others))
    _, name, others = min(found)
    return name, [word for key in others for word in ("--set", f"{key}={json.dumps(settings[key])}")]
