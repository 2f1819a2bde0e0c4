"""Where the time of one pass goes: its kernels by class, and the gaps between them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import Device

# The first class of which a word is in the kernel's name.
CLASSES = (
    ("attention", ("attention", "flash", "fmha", "sdpa", "mha")),
    ("int4 product", ("int4", "tinygemm")),
    ("matrix product", ("gemm", "gemv", "cutlass", "cublas", "xmma", "nvjet", "matmul", "addmm", "linear")),
    ("convolution", ("conv",)),
    ("norm", ("norm", "welford", "rsqrt")),
    ("softmax", ("softmax",)),
    ("reduction", ("reduce", "sum", "amax", "argmax")),
    ("gather, concatenate", ("index", "gather", "scatter", "cat", "embedding", "sort")),
    ("copy, cast", ("copy", "memcpy", "memset", "cast", "fill", "contiguous", "clone", "_to_")),
    ("elementwise", ("elementwise", "triton", "silu", "gelu", "add", "mul", "neg", "vectorized")),
)
OTHER = "other"
_KERNELS = {"kernel", "gpu_memcpy", "gpu_memset"}


@dataclass(frozen=True)
class Span:
    """One kernel: its ``name``, when it began and how long it took, in microseconds."""

    name: str
    begin: float
    length: float


def profile_pass(device: Device, call: Callable[[], Any]) -> dict[str, Any]:
    """The table of one ``call``, after one that warms up; on the CPU of its outermost operators."""
    activity = ProfilerActivity.CUDA if device.is_cuda else ProfilerActivity.CPU
    call()
    device.wait()
    with profile(activities=[ProfilerActivity.CPU, activity] if device.is_cuda else [activity]) as recorded:
        call()
        device.wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return tabulate(spans(events, _KERNELS if device.is_cuda else {"cpu_op"}))


def spans(events: Sequence[dict[str, Any]], categories: set[str]) -> list[Span]:
    """The events of a Chrome trace in ``categories``, in order, without those inside another."""
    found = sorted(
        (
            Span(str(event["name"]), float(event["ts"]), float(event["dur"]))
            for event in events
            if event.get("ph") == "X" and str(event.get("cat", "")).lower() in categories
        ),
        key=lambda span: (span.begin, -span.length),
    )
    outer: list[Span] = []
    for span in found:
        if not outer or span.begin + span.length > outer[-1].begin + outer[-1].length:
            outer.append(span)
    return outer


def tabulate(kernels: Sequence[Span]) -> dict[str, Any]:
    """Milliseconds, number and share by class, longest first; the time from the first kernel's begin to the
    last one's end, and how much of it no kernel ran; the ten kernels that took longest together."""
    if not kernels:
        return {"span_ms": 0.0, "busy_ms": 0.0, "gaps_ms": 0.0, "kernels": 0, "classes": [], "longest": []}
    end = max(span.begin + span.length for span in kernels)
    span_us = end - kernels[0].begin
    busy = _busy(kernels)
    return {
        "span_ms": span_us / 1e3,
        "busy_ms": busy / 1e3,
        "gaps_ms": (span_us - busy) / 1e3,
        "kernels": len(kernels),
        "classes": _rows(kernels, lambda span: class_of(span.name), span_us),
        "longest": _rows(kernels, lambda span: span.name[:120], span_us)[:10],
    }


def class_of(name: str) -> str:
    """The class of a kernel by its name."""
    low = name.lower()
    return next((kind for kind, words in CLASSES if any(word in low for word in words)), OTHER)


def _rows(kernels: Sequence[Span], key: Callable[[Span], str], whole: float) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {}
    for span in kernels:
        times.setdefault(key(span), []).append(span.length)
    rows = [
        {"name": name, "ms": sum(each) / 1e3, "count": len(each), "share": sum(each) / whole}
        for name, each in times.items()
    ]
    return sorted(rows, key=lambda row: -float(str(row["ms"])))


def _busy(kernels: Sequence[Span]) -> float:
    """Microseconds in which at least one kernel ran."""
    total, reached = 0.0, kernels[0].begin
    for span in kernels:
        end = span.begin + span.length
        if end > reached:
            total += end - max(span.begin, reached)
            reached = end
    return total
