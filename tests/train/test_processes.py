"""Several processes train one adapter: as one process would with their batches together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_sft import settings_for, toml
from train import processes
from train.artefact import read_provenance
from train.assembly import assemble
from train.checkpoints import last_checkpoint, step_of
from train.config import Settings, to_dict
from train.curves import read_log
from train.kept import Watch
from train.sft import fine_tune, recorded, settled
from wafervlm.errors import ConfigError, UsageError

ROOT = Path(__file__).resolve().parents[2]
# What `accelerate launch` starts on GPUs; on a CPU it would start one process, or ask for MPI.
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launch(settings_file: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *LAUNCH, "-m", "wafervlm.cli", "train", str(settings_file), "--json"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def kill_when_begun(process: subprocess.Popen[str], checkpoints: Path) -> Path:
    """Kill -9 the launcher and what it started once two checkpoints were written; return the last one."""
    deadline = time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        last = last_checkpoint(checkpoints)
        if last is not None and step_of(last) > 1:
            break
        time.sleep(0.02)
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in everyone:
        each.kill()
    psutil.wait_procs(everyone, timeout=30)
    process.communicate()
    left = last_checkpoint(checkpoints)
    assert left is not None
    return left


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(
    tmp_path: Path, tiny_checkpoint: Path, synthetic_dataset: Path
) -> None:
    """Also when they are killed in between: each step's loss, the held-out figures and the adapter are those
    of one process, and everything is written once."""

    def training(name: str, batch: int) -> Settings:
        lora = {"rank": 4, "vision": True, "tokens": True}
        return settings_for(
            tmp_path / name,
            tiny_checkpoint,
            synthetic_dataset,
            lora,
            max_steps=STEPS,
            batch=batch,
            accumulate=2,
            learning_rate=3e-3,
            evaluations=2,
            patience=0,
            save_steps=1,
        )

    two = training("two", 5)
    alone, _ = assemble(training("one", 10), tmp_path / "one.partial", None)
    alone.train()
    (tmp_path / "two.toml").write_text(toml(to_dict(two)))
    assert recorded(two, 2) is None
    begun = kill_when_begun(launch(tmp_path / "two.toml"), tmp_path / "two.partial" / "checkpoints")
    assert 1 < step_of(begun) < STEPS
    early = [row["loss"] for row in Watch.read(begun)[0].rows if "loss" in row]
    with pytest.raises(UsageError, match="processes was 2 and is None"):
        fine_tune(two)
    process = launch(tmp_path / "two.toml")
    said, noted = process.communicate(timeout=300)
    assert process.returncode == 0, noted[-3000:]
    assert noted.count("settings\n") == said.count("tune_accuracy") == 1

    found = recorded(two, 2)
    assert found is not None and (found.steps, found.samples) == (STEPS, 20 * STEPS)
    assert read_provenance(tmp_path / "two")["settings"]["processes"] == 2
    assert not (tmp_path / "two.partial").exists()
    rows, others = alone.watch.rows, read_log(tmp_path / "two" / "log.csv")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == STEPS and losses[0] - losses[-1] > 0.01
    assert early == pytest.approx(losses[: len(early)], abs=1e-5) and len(early) > 1
    for row, other in zip(rows, others, strict=True):
        # The log has six digits.
        assert {**row, "seconds": 0} == pytest.approx({**other, "seconds": 0}, rel=1e-4)
    second = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert second.keys() == alone.best.keys()
    for name in second:
        torch.testing.assert_close(second[name], alone.best[name], rtol=0, atol=1e-5)


def test_a_clock_ends_one_process_only(
    tmp_path: Path, tiny_checkpoint: Path, synthetic_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path / "a", tiny_checkpoint, synthetic_dataset, time_limit_minutes=1.0)
    assert settled(settings).train.time_limit_minutes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"time_limit_minutes is 1 and 2 processes.*max_steps"):
        settled(settings)


def test_one_process_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (processes.count(), processes.rank(), processes.is_main()) == (1, 0, True)
    with processes.together("cpu"):
        processes.wait()
        assert processes.of_main(lambda: 3) == 3
        assert processes.gathered("a") == ["a"]
    assert not torch.distributed.is_initialized()
    monkeypatch.setenv("RANK", "1")
    assert processes.is_main()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (processes.count(), processes.rank(), processes.is_main()) == (2, 1, False)
