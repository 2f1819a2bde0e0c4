"""What a figure was measured on: processor, memory, system and versions. No names of hosts, no paths,
no kernel build: that is of one machine and says nothing elsewhere."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from typing import Any

import psutil

from wafervlm import workshop
from wafervlm.cores import usable_cores
from wafervlm.machine import cpu_model, extensions

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "transformers", "triton")


def describe_machine(threads: int) -> dict[str, Any]:
    """The machine as plain values; ``threads`` is how many the figures were taken with."""
    return {
        "cpu": cpu_model(),
        "extensions": extensions(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": threads,
        "load_before": round(psutil.getloadavg()[0], 2),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"wafervlm": workshop.version(), **dict(_versions())},
    }


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
