"""The device that is measured: its clock, its memory, and the time of single calls."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wafervlm.errors import ProviderError, UsageError

MIB = float(1 << 20)


@dataclass
class Memory:
    """The most bytes allocated inside a block beyond what was allocated before it; None where the device
    does not count. ``before`` is what was allocated before it."""

    peak: int | None = None
    before: int = 0


class Device:
    """``cuda`` or ``cpu``. Calls are timed with events of the device, on the CPU with its clock."""

    def __init__(self, name: str) -> None:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ProviderError(f"device {name!r} was asked for and torch sees no GPU here; choose cpu")
        self.torch = torch.device(name)
        self.is_cuda = self.torch.type == "cuda"

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability, None on the CPU."""
        return torch.cuda.get_device_capability(self.torch) if self.is_cuda else None

    @property
    def cache_bytes(self) -> int:
        """Size of the last-level cache, where it is known."""
        if not self.is_cuda:
            return 0
        return int(getattr(torch.cuda.get_device_properties(self.torch), "L2_cache_size", 64 << 20))

    def wait(self) -> None:
        """Until everything queued is done."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Of one ``call`` that begins on an idle device, from its submission to its last result."""
        self.wait()
        if not self.is_cuda:
            started = time.perf_counter_ns()
            call()
            return (time.perf_counter_ns() - started) / 1e6
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    @contextlib.contextmanager
    def watching(self) -> Iterator[Memory]:
        """Yield a Memory that is filled in when the block ends."""
        memory = Memory()
        self.free()
        if self.is_cuda:
            memory.before = int(torch.cuda.memory_allocated(self.torch))
            torch.cuda.reset_peak_memory_stats(self.torch)
        yield memory
        if self.is_cuda:
            self.wait()
            memory.peak = int(torch.cuda.max_memory_allocated(self.torch)) - memory.before

    def free(self) -> None:
        """Give back what nobody holds."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()


def time_calls(
    device: Device,
    call: Callable[[Any], Any],
    inputs: Sequence[Any],
    *,
    seconds: float,
    warmup: int = 3,
    least: int = 10,
    most: int = 300,
) -> list[float]:
    """Milliseconds of single calls, each on the next of ``inputs``, after ``warmup`` calls that do not count.

    As many calls as fit into ``seconds``, ``least`` to ``most``. Raises UsageError without inputs.
    """
    if not inputs:
        raise UsageError("there is no input to time a call on")
    around = itertools.cycle(inputs)
    expected = 0.0
    for _ in range(max(warmup, 1)):
        expected = device.milliseconds(functools.partial(call, next(around)))
    count = min(max(int(seconds * 1e3 / max(expected, 1e-3)), least), most)
    return [device.milliseconds(functools.partial(call, next(around))) for _ in range(count)]


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of the parameters and buffers of ``module``, shared ones once."""
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
