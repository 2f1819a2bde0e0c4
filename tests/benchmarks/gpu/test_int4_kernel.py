"""The INT4 kernel in Triton's interpreter, in a process of its own: it must be chosen before the import."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import torch
from benchmarks.gpu.int4_kernel import CONFIGS, matmul, pack

torch.manual_seed(0)
for rows, outputs, inputs, group in ((5, 80, 256, 32), (33, 64, 384, 128), (1, 16, 128, 128)):
    levels = torch.randint(-8, 8, (outputs, inputs))
    scales = (torch.rand(inputs // group, outputs) * 0.1).half()
    x = torch.randn(rows, inputs).half()
    wanted = x.float() @ (levels * scales.float().T.repeat_interleave(group, 1)).T
    for config in CONFIGS:
        out = matmul(x, pack(levels, group), scales, config).float()
        assert (out - wanted).norm() / wanted.norm() < 1e-3, (rows, config)
print("equal")
"""


def test_the_kernel_multiplies_by_the_weights_it_packs() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if "0-dimensional arrays" in ran.stderr:
        pytest.skip("this Triton's interpreter does not know this numpy")
    assert ran.stdout.strip() == "equal", ran.stderr
