"""Runs llm-compressor's GPTQ on one matrix, in an environment of its own: python oracle.py IN.npz OUT.npz.

IN holds weight (N, K), hessian (K, K), scales (N, groups), bits, group and act_order; OUT gets dense (N, K)
float32.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight


def main(source: str, target: str) -> None:
    with np.load(source) as given:
        weight, hessian, scales = (
            torch.from_numpy(given[name]).float() for name in ("weight", "hessian", "scales")
        )
        bits, group, act_order = int(given["bits"]), int(given["group"]), bool(given["act_order"])
    settings = QuantizationArgs(
        num_bits=bits,
        strategy="group",
        group_size=group,
        symmetric=True,
        actorder="static" if act_order else None,
    )
    dense, _, fell_back = quantize_weight(
        weight[None].clone(),
        hessian[None].clone(),
        scales[None],
        torch.zeros_like(scales)[None],
        None,
        settings,
        percdamp=0.01,
    )
    if bool(fell_back.any()):
        raise SystemExit("llm-compressor fell back to rounding")
    np.savez(target, dense=dense[0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
