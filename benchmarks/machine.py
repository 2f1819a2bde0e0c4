"""What a figure was measured on: processor, memory, system and versions. No names of hosts, no paths,
no kernel build: that is of one machine and says nothing elsewhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from wafervlm import workshop

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "transformers")
# What decides how fast 4-bit and bfloat16 products run.
_EXTENSIONS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)


def describe_machine(threads: int) -> dict[str, Any]:
    """The machine as plain values; ``threads`` is how many the figures were taken with."""
    return {
        "cpu": _cpu_model(),
        "extensions": _extensions(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": _usable_cores(),
        "threads": threads,
        "load_before": round(psutil.getloadavg()[0], 2),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"wafervlm": workshop.version(), **dict(_versions())},
    }


def _cpu_info() -> Iterator[tuple[str, str]]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            yield key.strip(), value.strip()


def _cpu_model() -> str:
    named = next((value for key, value in _cpu_info() if key in ("model name", "Model")), "")
    return named or platform.processor() or platform.machine()


def _extensions() -> list[str]:
    flags = next((value for key, value in _cpu_info() if key in ("flags", "Features")), "").split()
    return [name for name in _EXTENSIONS if name in flags]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
