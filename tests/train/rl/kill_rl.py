"""Train by reward twice: whole, and killed with SIGKILL on the way.

    python kill_rl.py BASE ADAPTER WORDS OUT

Each attempt is a fork of this process, which has run no computation yet. Prints, as JSON, the last
checkpointed step at each kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.train.rl.toy import brief, vowels
from train.checkpoints import last_checkpoint, step_of
from train.rl.gspo import reinforce

KILLS = 2


def main(base: Path, adapter: Path, words: Path, out: Path) -> None:
    changes: dict[str, Any] = {
        "model__adapter": str(adapter),
        "lora__rank": None,
        "rl__beta": 0.02,
        "train__max_steps": 12,
        "train__save_steps": 2,
        "train__evaluations": 3,
    }

    def attempt(name: str) -> int:
        child = os.fork()
        if child == 0:
            reinforce(brief(out / name, base, words, **changes), vowels)
            os._exit(0)
        return child

    checkpoints, reached = out / "killed.partial" / "checkpoints", [0]
    for _ in range(KILLS):
        child = attempt("killed")
        _wait_for(checkpoints, reached[-1], child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        last = last_checkpoint(checkpoints)
        reached.append(step_of(last) if last else 0)
    for name in ("killed", "whole"):
        _, status = os.waitpid(attempt(name), 0)
        if status != 0:
            raise SystemExit(f"{name} failed with status {status}")
    sys.stdout.write(json.dumps(reached[1:]) + "\n")


def _wait_for(checkpoints: Path, step: int, child: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if max((step_of(path) for path in checkpoints.glob("step-*")), default=0) > step:
            return
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            raise SystemExit("the training ended before it could be killed")
        time.sleep(0.005)
    raise SystemExit("no checkpoint appeared")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
