"""A Triton kernel for INT4 weights: they are unpacked inside the product, into the type of the activations.

A program computes one tile of the output over a share of the groups. 4-bit levels become floats without the
slow conversion of integers: the bits of 2^23 with the level in the lowest four are 2^23 plus the level. The
product of a group is scaled in float32, so that no weight is rounded. With more than one share of the groups
(few tiles would leave multiprocessors idle) the shares are added afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]

# Columns of a tile, shares of the groups, warps, stages of the load pipeline.
CONFIGS = ((64, 1, 4, 3), (64, 4, 4, 3), (128, 1, 8, 3), (128, 4, 8, 3))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _levels(raised):  # type: ignore[no-untyped-def]
    """Levels -8 to 7, stored 0 to 15, as float32."""
    return (raised | 0x4B000000).to(tl.float32, bitcast=True) - 8388616.0


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def int4_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    packed_ptr,
    scales_ptr,
    out_ptr,
    M,
    N,
    K,
    SHARE,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    HALF: tl.constexpr = GROUP // 2
    inner = tl.arange(0, HALF)
    row_there, column_there = rows[:, None] < M, columns[None, :] < N
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    first = tl.program_id(2) * SHARE
    for i in range(SHARE):
        group = first + i
        # The levels past the last group read as 0 activations, which add nothing.
        there = group * GROUP < K
        packed = tl.load(
            packed_ptr + (group * HALF + inner)[:, None] * N + columns[None, :],
            mask=column_there & there,
            other=0,
        ).to(tl.int32)
        low = _levels(packed & 0xF).to(x_ptr.dtype.element_ty)
        high = _levels(packed >> 4).to(x_ptr.dtype.element_ty)
        x = x_ptr + rows[:, None] * K + group * GROUP + inner[None, :]
        product = tl.dot(tl.load(x, mask=row_there & there, other=0.0), low)
        product = tl.dot(tl.load(x + HALF, mask=row_there & there, other=0.0), high, product)
        scales = tl.load(scales_ptr + group * N + columns, mask=(columns < N) & there, other=0.0)
        total += product * scales.to(tl.float32)[None, :]
    place = tl.program_id(2) * M * N + rows[:, None] * N + columns[None, :]
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=row_there & column_there)


def pack(levels: torch.Tensor, group: int) -> torch.Tensor:
    """(N, K) levels -8 to 7 as (K / 2, N) bytes: the byte ``j`` of a group holds its levels ``j`` (low half)
    and ``j + group / 2``."""
    outputs, inputs = levels.shape
    raised = (levels + 8).to(torch.uint8).T.reshape(inputs // group, 2, group // 2, outputs)
    return (raised[:, 0] | (raised[:, 1] << 4)).reshape(inputs // 2, outputs).contiguous()


def matmul(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, config: tuple[int, int, int, int]
) -> torch.Tensor:
    """``x`` (M, K), contiguous, times the INT4 weight: ``packed`` (K / 2, N) as ``pack`` says, ``scales``
    (K / group, N) float16. Returns (M, N) of the dtype of ``x``. ``config`` is one of CONFIGS."""
    (rows, inputs), outputs = x.shape, packed.shape[1]
    groups = scales.shape[0]
    block_n, shares, warps, stages = config
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64 if rows <= 64 else 128
    share = triton.cdiv(groups, shares)
    dtype = x.dtype if shares == 1 else torch.float32
    out = torch.empty((shares, rows, outputs), dtype=dtype, device=x.device)
    grid = (triton.cdiv(outputs, block_n), triton.cdiv(rows, block_m), shares)
    launch: Any = int4_kernel[grid]
    launch(
        x,
        packed,
        scales,
        out,
        rows,
        outputs,
        inputs,
        share,
        GROUP=inputs // groups,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        num_warps=warps,
        num_stages=stages,
    )
    return out[0] if shares == 1 else out.sum(0).to(x.dtype)
