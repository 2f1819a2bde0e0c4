"""What NVML says of the GPU: driver, clocks, power and the energy that a piece of work took."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.device import Device


@dataclass(frozen=True)
class Energy:
    """Joules that were used, or the ``reason`` why that is not known."""

    joules: float | None
    reason: str = ""


class Telemetry:
    """NVML's handle of the device that torch measures. Where there is none, ``reason`` says why."""

    def __init__(self, device: Device) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        self.reason = ""
        if not device.is_cuda:
            self.reason = "NVML knows NVIDIA GPUs only"
            return
        try:
            import pynvml  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            self.reason = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
            self._handle = _handle(pynvml, device)
            self._nvml = pynvml
        except pynvml.NVMLError as error:
            self.reason = f"NVML does not answer: {error}"

    def describe(self) -> dict[str, Any]:
        """Driver, clocks in MHz now and at most, power limit in W; None where NVML does not say."""
        if self._nvml is None:
            return {"nvml": self.reason}
        nvml, handle = self._nvml, self._handle
        sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
        asked: dict[str, Callable[[], Any]] = {
            "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, sm),
            "sm_mhz_most": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, sm),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, memory),
            "memory_mhz_most": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, memory),
            "power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        found: dict[str, Any] = dict.fromkeys(asked)
        for name, ask in asked.items():
            with suppress(nvml.NVMLError):
                found[name] = ask()
        return found

    def sm_clock(self) -> int | None:
        """Clock of the multiprocessors in MHz at this moment."""
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                return int(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))
        return None

    def energy_of(self, work: Callable[[], None]) -> Energy:
        """Of ``work``, which must end with the device idle, by the board's own counter: everything the board
        draws meanwhile."""
        if self._nvml is None:
            return Energy(None, self.reason)
        try:
            before = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            work()
            after = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as error:
            return Energy(None, f"this GPU counts no energy: {error}")
        return Energy((after - before) / 1e3)


def _handle(nvml: Any, device: Device) -> Any:
    # By its identifier: torch counts only the GPUs that it may see, NVML all of them.
    uuid = getattr(torch.cuda.get_device_properties(device.torch), "uuid", None)
    if uuid is not None:
        for name in (f"GPU-{uuid}", f"GPU-{uuid}".encode()):
            with suppress(nvml.NVMLError, TypeError, AttributeError):
                return nvml.nvmlDeviceGetHandleByUUID(name)
    return nvml.nvmlDeviceGetHandleByIndex(device.torch.index or 0)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
