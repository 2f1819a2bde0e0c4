"""What a figure was measured on, as far as it is known without further packages. No names of hosts, no
paths, no kernel build: that is of one machine and says nothing elsewhere."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from wafervlm import workshop
from wafervlm.cores import usable_cores
from wafervlm.doctor import installed

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
# What decides how fast 4-bit and bfloat16 products run.
_EXTENSIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm"),
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system and versions as plain values; None where the system does not tell."""
    versions = {name: installed(name) for name in PACKAGES}
    return {
        "cpu": cpu_model(),
        "extensions": extensions(),
        "logical_cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"wafervlm": workshop.version(), **{k: v for k, v in versions.items() if v}},
    }


def cpu_model() -> str:
    """The processor by its name, or its architecture where it has none here."""
    named = next((value for key, value in _cpu_info() if key in ("model name", "Model")), "")
    return named or platform.processor() or platform.machine()


def extensions() -> list[str]:
    """Which of the instruction sets that matter here the processor has; empty where Linux does not say."""
    flags = next((value for key, value in _cpu_info() if key in ("flags", "Features")), "").split()
    return [name for name in _EXTENSIONS if name in flags]


def peak_memory_mib() -> float | None:
    """The largest resident memory of this process so far, in MiB; None on Windows."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would tell of the process that started this one, where that was larger.
        lines = status.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _cpu_info() -> Iterator[tuple[str, str]]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            yield key.strip(), value.strip()
