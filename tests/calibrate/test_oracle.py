"""Our GPTQ against llm-compressor's, which runs in an environment of its own since it wants other releases.

Set it up and name its Python::

    python3.11 -m venv oracle
    oracle/bin/pip install torch==2.13.0 llmcompressor==0.14.*
    WAFERVLM_ORACLE=$PWD/oracle/bin/python pytest -m oracle tests/calibrate
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from calibrate.gptq import Hessian, Scheme, gptq, group_scales, layer_error, round_to_nearest
from tests.calibrate.conftest import correlated

PYTHON = os.environ.get("WAFERVLM_ORACLE", "")

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        not PYTHON,
        reason="set WAFERVLM_ORACLE to a Python that has llmcompressor 0.14; test_oracle.py says how",
    ),
]


@pytest.mark.parametrize(
    ("bits", "group", "act_order", "clip"),
    [(4, 128, True, True), (4, 128, True, False), (4, 32, False, False), (3, 32, True, True)],
)
def test_one_matrix_comes_out_as_from_llm_compressor(
    tmp_path: Path, bits: int, group: int, act_order: bool, clip: bool
) -> None:
    weight = torch.randn(64, 384, generator=torch.Generator().manual_seed(6)) / 20
    hessian = Hessian(384)
    hessian.add(correlated(3000, 384))
    matrix = hessian.matrix / hessian.tokens
    scheme = Scheme(bits=bits, group=group, act_order=act_order, clip=clip)
    scales = group_scales(weight, scheme, matrix.diagonal()).float()
    given = {"weight": weight, "hessian": matrix, "scales": scales}
    np.savez(
        tmp_path / "in.npz",
        **{name: tensor.numpy() for name, tensor in given.items()},
        bits=bits,
        group=group,
        act_order=act_order,
    )
    script = Path(__file__).with_name("oracle.py")
    subprocess.run([PYTHON, script, tmp_path / "in.npz", tmp_path / "out.npz"], check=True, timeout=300)
    with np.load(tmp_path / "out.npz") as answer:
        theirs = torch.from_numpy(answer["dense"])
    ours = gptq(weight, matrix, scheme).dense()
    step = scales.repeat_interleave(group, dim=1)
    # Sums in another order turn a few ties; everything after them may differ in that row.
    assert ((ours - theirs).abs() < 0.01 * step).float().mean() > 0.97
    errors = [layer_error(weight, found, matrix) for found in (ours, theirs)]
    np.testing.assert_allclose(errors[0], errors[1], rtol=0.02)
    assert errors[0] < 0.6 * layer_error(weight, round_to_nearest(weight, scheme).dense(), matrix)
