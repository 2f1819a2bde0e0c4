"""Checkpoints under errors, damage and kills."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.checkpoints import MANIFEST, is_whole, last_checkpoint, step_of, writing_checkpoint
from wafervlm.errors import ResourceError

ROOT = Path(__file__).resolve().parents[2]

# Writes checkpoints without end; each file says its step, so that a mixture of two would show.
WRITER = """
import sys
from pathlib import Path
from train.checkpoints import last_checkpoint, step_of, writing_checkpoint
root = Path(sys.argv[1])
last = last_checkpoint(root)
step = step_of(last) + 1 if last else 1
print("ready", flush=True)
while True:
    with writing_checkpoint(root, step) as folder:
        (folder / "sub").mkdir()
        for name in ("a", "b", "sub/c"):
            (folder / name).write_bytes(str(step).encode() * 3000)
    step += 1
"""


def write(root: Path, step: int, text: str = "x") -> Path:
    with writing_checkpoint(root, step) as folder:
        (folder / "state").write_text(text)
    return root / f"step-{step:08d}"


def test_newest_whole_one_is_found_and_older_ones_go(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (1, 2, 10, 9000):
        write(tmp_path, step)
    last = last_checkpoint(tmp_path)
    assert last is not None and step_of(last) == 9000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00009000"]


@pytest.mark.parametrize("damage", ["truncate", "change", "delete", "add", "no manifest", "bad manifest"])
def test_damaged_one_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2, "state of step 2")
    match damage:
        case "truncate":
            (newest / "state").write_text("state")
        case "change":
            (newest / "state").write_text("state of step 3")
        case "delete":
            (newest / "state").unlink()
        case "add":
            (newest / "other").write_text("")
        case "no manifest":
            (newest / MANIFEST).unlink()
        case "bad manifest":
            (newest / MANIFEST).write_text(json.dumps({})[:-1])
    last = last_checkpoint(tmp_path)
    assert last is not None and step_of(last) == 1
    assert "step-00000002" in caplog.text
    assert is_whole(write(tmp_path, 2, "again"))


def test_error_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(RuntimeError), writing_checkpoint(tmp_path, 2) as folder:
        (folder / "state").write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="disk is full"), writing_checkpoint(tmp_path, 1):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="denied"), writing_checkpoint(tmp_path, 1):
        raise OSError(errno.EACCES, "denied")


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    chance, steps = random.Random(5), [0]
    for _ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.02, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        last = last_checkpoint(tmp_path)
        if last is not None:
            contents = {p.read_bytes() for p in (last / "a", last / "b", last / "sub/c")}
            assert contents == {str(step_of(last)).encode() * 3000}
            steps.append(step_of(last))
    assert steps == sorted(steps) and steps[-1] > 10
