"""Train to the end, killed with SIGKILL again and again on the way.

    python kill_training.py SETTINGS.toml SEED KILLS

The libraries are imported once; each attempt is a fork of this process, which has run no computation yet.
Prints, as JSON, the last checkpointed step at each kill.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from train.checkpoints import last_checkpoint, step_of
from train.config import read_settings
from train.sft import fine_tune


def main(settings_file: Path, seed: int, kills: int) -> None:
    settings, _ = read_settings(settings_file)
    checkpoints = Path(settings.output + ".partial") / "checkpoints"
    chance, reached = random.Random(seed), []
    for attempt in range(kills + 1):
        child = os.fork()
        if child == 0:
            fine_tune(settings)
            os._exit(0)
        if attempt < kills:
            _wait_for_progress(checkpoints, reached[-1] if reached else 0, child)
            time.sleep(chance.uniform(0.0, 0.5))
            os.kill(child, signal.SIGKILL)
            last = last_checkpoint(checkpoints)
            reached.append(step_of(last) if last else 0)
        _, status = os.waitpid(child, 0)
        if attempt == kills and status != 0:
            raise SystemExit(f"the last attempt failed with status {status}")
    sys.stdout.write(json.dumps(reached) + "\n")


def _wait_for_progress(checkpoints: Path, step: int, child: int) -> None:
    """Until a checkpoint after ``step`` stands, so that every attempt gets somewhere."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        last = max((step_of(p) for p in checkpoints.glob("step-*")), default=0)
        if last > step:
            return
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise SystemExit("the training ended before it could be killed")
        time.sleep(0.005)
    raise SystemExit("no checkpoint appeared")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
