"""Run: every row in turn, each kept as soon as it is there."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from benchmarks.gpu.bundles import bundle_steps, place_bundle, time_bundle
from benchmarks.gpu.device import MIB, Device
from benchmarks.gpu.nvml import Telemetry
from benchmarks.gpu.passes import PROMPTED, SECONDS, STATIC
from benchmarks.gpu.results import FAILED, OK, Budget, Results, Row, failed, skipped
from benchmarks.gpu.rows import (
    FLOOR_AFTER,
    Shape,
    against_float32,
    floor,
    gptq,
    profile,
    replay,
    time_pass,
)
from benchmarks.gpu.settings import Settings
from train.loading import quiet_transformers
from wafervlm import console
from wafervlm.errors import MissingDependencyError, ProviderError

# Whose kernels are tabulated: on a GPU the recorded passes, elsewhere the one that runs there.
PROFILED = {
    "cuda": ("static-captured", "static-compiled", "static-int4-triton", "static-fp8-compiled"),
    "cpu": ("static",),
}


@dataclass(frozen=True)
class Step:
    """One row: its ``key``, what it says besides its figures, about how many seconds it takes, and the
    ``make`` that gives its figures."""

    key: str
    known: Row
    seconds: float
    make: Callable[[], Row]


def run(settings: Settings, out: Path) -> Results:
    """Measure everything that ``settings`` ask for, in this process, and keep it in ``out``; rows there that
    are ok are not made again. Raises UsageError and ProviderError before anything is measured; what fails
    later is a row that says so."""
    device = Device(settings.device)
    telemetry = Telemetry(device)
    results = open_results(settings, out, device, telemetry)
    budget = Budget(settings.budget)
    with quiet_transformers():
        for name in settings.shapes:
            _measure_shape(name, settings, device, telemetry, results, budget)
        for step in _bundle_steps(settings, device, telemetry):
            _take(step, results, budget)
    return results


def open_results(settings: Settings, out: Path, device: Device, telemetry: Telemetry) -> Results:
    """The results in ``out``, those of before where it is there. Raises UsageError where they are of
    something else."""
    results = Results(out, settings.to_dict(), describe_device(device, telemetry))
    results.write()
    return results


def describe_device(device: Device, telemetry: Telemetry) -> Row:
    """The machine as plain values: device, versions, clocks, processor."""
    found: Row = {
        "device": torch.cuda.get_device_name(device.torch) if device.is_cuda else "cpu",
        "compute_capability": None if device.capability is None else ".".join(map(str, device.capability)),
        "memory_mib": _memory(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "transformers": transformers.__version__,
        "telemetry": telemetry.describe(),
    }
    try:
        from benchmarks.machine import describe_machine

        found["host"] = describe_machine(torch.get_num_threads())
    except ImportError as error:
        found["host"] = {"unknown": str(error)}
    return found


def _measure_shape(
    name: str, settings: Settings, device: Device, telemetry: Telemetry, results: Results, budget: Budget
) -> None:
    shape = Shape(name, settings, device)
    steps = list(_steps(name, settings, device, telemetry, shape))
    # What failed before comes last: it may have taken the process with it.
    steps.sort(key=lambda step: results.failed(step.key))
    try:
        for step in steps:
            if name not in results.shapes and not results.has(step.key) and not budget.refusal():
                results.shapes[name] = _described(shape)
            _take(step, results, budget)
    finally:
        shape.close()


def _described(shape: Shape) -> Row:
    try:
        passes = shape.passes
    except Exception as error:
        # Its rows will say the same.
        return failed(error)
    return {"status": OK, **passes.subject.describe(), "answer_tokens": passes.answer_tokens}


def _take(step: Step, results: Results, budget: Budget) -> None:
    if results.has(step.key):
        return
    refusal = budget.refusal(step.seconds if results.rows else 0.0)
    if refusal:
        results.put(step.key, {**step.known, **skipped(refusal)})
        return
    started = time.monotonic()
    results.put(step.key, {**step.known, "status": f"{FAILED}: the process ended in it"})
    row: Row
    try:
        row = {"status": OK, **step.make()}
    except (ProviderError, MissingDependencyError) as error:
        row = skipped(str(error))
    except Exception as error:
        # A missing kernel, too little memory, another release of torch or of Triton: errors of many kinds,
        # and none may take the other rows with it.
        row = failed(error)
    results.put(step.key, {**step.known, **row, "seconds": time.monotonic() - started})
    status = str(row["status"])
    figure = f"{row['latency_ms']['p50']:.3f} ms" if "latency_ms" in row else ""
    console.say(f"{step.key}: {figure or status} ({time.monotonic() - started:.1f} s)")


def _steps(
    name: str, settings: Settings, device: Device, telemetry: Telemetry, shape: Shape
) -> Iterator[Step]:
    def timing(which: str, batch: int) -> Step:
        known = {"kind": "pass", "shape": name, "batch": batch, "pass": which}
        make = functools.partial(time_pass, which, batch, settings, device, telemetry, shape)
        return Step(f"{name}/{which}/{batch}", known, SECONDS[which], make)

    for which in (*PROMPTED, *STATIC):
        if which in STATIC and STATIC[which].compiled and not settings.compiled:
            continue
        yield from (timing(which, batch) for batch in settings.batches)
        if settings.profile and which in PROFILED[device.torch.type]:
            known = {"kind": "profile", "shape": name, "batch": settings.batches[0], "pass": which}
            make = functools.partial(profile, which, settings.batches[0], device, shape)
            yield Step(f"{name}/profile/{which}", known, 8.0, make)
        if which == FLOOR_AFTER:
            for batch in settings.batches:
                known = {"kind": "floor", "shape": name, "batch": batch}
                make = functools.partial(floor, batch, settings, device, shape)
                yield Step(f"{name}/floor/{batch}", known, 20.0, make)
    known = {"kind": "float32", "shape": name}
    yield Step(f"{name}/float32", known, 10.0, functools.partial(against_float32, device, shape))
    if settings.gptq_layers:
        known = {"kind": "replay", "shape": name}
        yield Step(f"{name}/replay", known, 5.0, functools.partial(replay, shape))
        known = {"kind": "gptq", "shape": name}
        yield Step(f"{name}/gptq", known, 20.0, functools.partial(gptq, settings, device, shape))


def _bundle_steps(settings: Settings, device: Device, telemetry: Telemetry) -> Iterator[Step]:
    for bundle in settings.bundles:
        known: Row = {"kind": "placement", "shape": bundle.name}
        make = functools.partial(place_bundle, bundle, device)
        yield Step(f"{bundle.name}/placement", known, 20.0, make)
    for runtime, bundle, engine in bundle_steps(settings.bundles, settings.engines, device):
        for batch in settings.batches:
            known = {"kind": "pass", "shape": bundle.name, "batch": batch, "pass": runtime}
            make = functools.partial(
                time_bundle,
                runtime,
                bundle,
                engine,
                batch=batch,
                maps=settings.maps,
                seconds=settings.row_seconds,
                telemetry=telemetry,
            )
            yield Step(f"{bundle.name}/{runtime}/{batch}", known, 30.0, make)


def _memory(device: Device) -> float | None:
    return torch.cuda.mem_get_info(device.torch)[1] / MIB if device.is_cuda else None
