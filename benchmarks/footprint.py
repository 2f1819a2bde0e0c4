"""What each contender takes: time to load, peak memory, size on disk. Each is measured in a fresh process."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import GENERATE, ONE_FORWARD
from train.progress import track
from wafervlm import workshop
from wafervlm.errors import SetupError
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 600


def measure_footprint(
    targets: Mapping[str, Path], precisions: Mapping[str, str], task: Task, wafer: WaferMap, threads: int
) -> dict[str, dict[str, float]]:
    """Figures of each contender in ``targets`` (name to bundle or checkpoint folder): ``import_ms``,
    ``load_ms``, ``first_answer_ms``, ``peak_mib``, ``disk_mib``. ``precisions`` are those of the checkpoints.

    Raises SetupError where a fresh process cannot answer.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        grid, task_file = Path(folder, "map.npy"), Path(folder, "task.json")
        np.save(grid, wafer.dies)
        task_file.write_text(json.dumps(task.to_dict()), encoding="utf-8")
        for name, target in track(list(targets.items()), "load each in a fresh process"):
            command = [name, str(target.resolve()), str(threads), str(grid), "--task", str(task_file)]
            if name in (ONE_FORWARD, GENERATE):
                command += ["--precision", precisions[name]]
            found[name] = {**_probed(command), "disk_mib": disk_mib(target)}
    return found


def disk_mib(folder: Path) -> float:
    """Size of all files below ``folder`` in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def _probed(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.probe", *command],
        cwd=workshop.ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"{command[0]} does not answer in a fresh process: {reason}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures
