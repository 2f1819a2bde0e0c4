"""Run: every row in turn, each kept as soon as it is there."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.gpu.bundles import bundle_steps, time_bundle
from benchmarks.gpu.device import MIB, Device, time_calls, weight_bytes
from benchmarks.gpu.floor import measure_floor
from benchmarks.gpu.gptq_time import time_gptq
from benchmarks.gpu.kernels import profile_pass
from benchmarks.gpu.nvml import Telemetry
from benchmarks.gpu.parity import Floats, agreement, parity
from benchmarks.gpu.passes import PROMPTED, SECONDS, STATIC, Passes, Ready, outputs_of
from benchmarks.gpu.prompted import labels_written
from benchmarks.gpu.results import OK, Budget, Results, Row, failed, skipped
from benchmarks.gpu.settings import NANO, Settings
from benchmarks.gpu.subject import Subject, make_subject
from train.loading import encode, quiet_transformers
from train.scorer import TreePass
from wafervlm import console
from wafervlm.errors import MissingDependencyError, ProviderError
from wafervlm.latency import summarise

ENERGY_SECONDS = 2.0
# As the embedded bundle is quantized.
NANO_GROUP = 32
# The pass whose products the floor is taken of; it is measured while that module is there.
FLOOR_AFTER = "static-captured"
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
        "triton": _version("triton"),
        "transformers": transformers.__version__,
        "telemetry": telemetry.describe(),
    }
    try:
        from benchmarks.machine import describe_machine

        found["host"] = describe_machine(torch.get_num_threads())
    except ImportError as error:
        found["host"] = {"unknown": str(error)}
    return found


class Shape:
    """What the rows of one shape share: the subject, made when the first row asks for it, its passes and the
    scores that full precision gives."""

    def __init__(self, name: str, settings: Settings, device: Device) -> None:
        self._name, self._settings, self._device = name, settings, device
        self._passes: Passes | None = None
        self._reference: Floats | None = None

    @property
    def passes(self) -> Passes:
        """The passes, with the subject on the device."""
        if self._passes is None:
            console.say(f"{self._name}: building the model on {self._device.torch}")
            subject = make_subject(self._name, self._settings, self._device)
            self._passes = Passes(subject, self._device, self.group(subject), self._settings.answer_tokens)
        return self._passes

    @property
    def reference(self) -> Floats:
        """Label log-probabilities (N, L) that transformers' own forward gives in full precision."""
        if self._reference is None:
            self._reference = reference_scores(self.passes.subject)
        return self._reference

    def group(self, subject: Subject) -> int:
        """The group of INT4: as set, that of the embedded bundle for nano, or what divides a small model's
        layers."""
        if self._name == NANO:
            return NANO_GROUP
        width = subject.checkpoint.network.config.text_config.hidden_size
        return self._settings.group if width % self._settings.group == 0 else 32

    def close(self) -> None:
        """Free everything."""
        self._passes = self._reference = None
        # After an illegal access the device refuses even this.
        with suppress(RuntimeError):
            self._device.free()


def reference_scores(subject: Subject, batch: int = 8) -> Floats:
    """Label log-probabilities (N, L) float64 by the workshop's reference scorer, in the model's own type."""
    plan, images = TreePass.of(subject.checkpoint, subject.task), subject.images
    return np.concatenate(
        [
            plan.score(subject.checkpoint, encode(subject.checkpoint, subject.task, images[i : i + batch]))
            for i in range(0, len(images), batch)
        ]
    )


def _measure_shape(
    name: str, settings: Settings, device: Device, telemetry: Telemetry, results: Results, budget: Budget
) -> None:
    shape = Shape(name, settings, device)
    try:
        for step in _steps(name, settings, device, telemetry, shape):
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
        make = functools.partial(_time_pass, which, batch, settings, device, telemetry, shape)
        return Step(f"{name}/{which}/{batch}", known, SECONDS[which], make)

    for which in (*PROMPTED, *STATIC):
        if which in STATIC and STATIC[which].compiled and not settings.compiled:
            continue
        yield from (timing(which, batch) for batch in settings.batches)
        if settings.profile and which in PROFILED[device.torch.type]:
            known = {"kind": "profile", "shape": name, "batch": settings.batches[0], "pass": which}
            make = functools.partial(_profile, which, settings.batches[0], device, shape)
            yield Step(f"{name}/profile/{which}", known, 8.0, make)
        if which == FLOOR_AFTER:
            for batch in settings.batches:
                known = {"kind": "floor", "shape": name, "batch": batch}
                make = functools.partial(_floor, batch, settings, device, shape)
                yield Step(f"{name}/floor/{batch}", known, 20.0, make)
    known = {"kind": "float32", "shape": name}
    yield Step(f"{name}/float32", known, 10.0, functools.partial(_float32, device, shape))
    if settings.gptq_layers:
        known = {"kind": "gptq", "shape": name}
        yield Step(f"{name}/gptq", known, 20.0, functools.partial(_gptq, settings, device, shape))


def _time_pass(
    which: str, batch: int, settings: Settings, device: Device, telemetry: Telemetry, shape: Shape
) -> Row:
    passes, reference = shape.passes, shape.reference
    passes.prepare(which)
    inputs = passes.inputs(which, batch)
    with device.watching() as memory:
        ready = passes.ready(which, batch, inputs)
        times = time_calls(device, ready.call, ready.inputs, seconds=settings.row_seconds)
    summary, clock = summarise(times), telemetry.sm_clock()
    return {
        "about": ready.about,
        "captured": ready.captured,
        "latency_ms": summary.to_dict(),
        "per_map_ms": summary.p50 / batch,
        "memory_mib": {
            "weights": ready.weights / MIB,
            "peak": None if memory.peak is None else (ready.weights + memory.peak) / MIB,
        },
        "sm_mhz": clock,
        **compare(which, ready, reference, passes.subject),
        "kernel_errors": ready.kernel_errors,
        "energy": _energy(ready, settings, device, telemetry),
    }


def compare(which: str, ready: Ready, reference: Floats, subject: Subject) -> Row:
    """``parity`` of a pass with full precision on all maps. Of generate only the labels that it wrote can be
    compared, and of random weights it writes none."""
    outputs = outputs_of(ready, len(subject.images))
    if which != "generate":
        return {"parity": parity(reference, outputs.double().numpy())}
    if not subject.trained:
        return {"parity": None, "parity_absent": "with random weights generated text names no label"}
    labels = labels_written(subject, outputs)
    return {"parity": {"maps": len(labels), "label_agreement": agreement(labels, reference)}}


def _energy(ready: Ready, settings: Settings, device: Device, telemetry: Telemetry) -> Row:
    calls = [0]

    def work() -> None:
        end = time.monotonic() + min(ENERGY_SECONDS, settings.row_seconds)
        while time.monotonic() < end:
            ready.call(ready.inputs[calls[0] % len(ready.inputs)])
            device.wait()
            calls[0] += 1

    if telemetry.reason:
        return {"joules_per_map": None, "reason": telemetry.reason}
    used = telemetry.energy_of(work)
    if used.joules is None:
        return {"joules_per_map": None, "reason": used.reason}
    return {"joules_per_map": used.joules / (calls[0] * ready.batch), "maps": calls[0] * ready.batch}


def _floor(batch: int, settings: Settings, device: Device, shape: Shape) -> Row:
    passes = shape.passes
    module, _ = passes.static(STATIC[FLOOR_AFTER])
    matrices = module.matrices(passes.subject.pixels(batch)[0])
    return {
        "computed_tokens": module.computed_tokens,
        "fixed_tokens": module.fixed_tokens,
        **measure_floor(device, matrices, passes.subject.dtype, shape.group(passes.subject)),
    }


def _profile(which: str, batch: int, device: Device, shape: Shape) -> Row:
    ready = shape.passes.ready(which, batch, shape.passes.inputs(which, batch))
    row = profile_pass(device, lambda: ready.call(ready.inputs[-1]))
    return {**row, "about": ready.about}


def _float32(device: Device, shape: Shape) -> Row:
    """How far full precision itself is from float32, beside which the other differences are to be read."""
    subject = shape.passes.subject
    if subject.dtype == torch.float32:
        raise ProviderError("full precision is float32 here")
    shape.passes.drop()
    network = subject.checkpoint.network
    if device.is_cuda and torch.cuda.mem_get_info(device.torch)[0] < 4 * weight_bytes(network):
        raise ProviderError("the device has no memory for the model in float32 beside itself")
    checkpoint = replace(subject.checkpoint, model=copy.deepcopy(network).float())
    # torch lets cuDNN's convolutions compute float32 in TF32 otherwise.
    with torch.backends.cudnn.flags(allow_tf32=False):
        exact = reference_scores(replace(subject, checkpoint=checkpoint))
    return {"parity": parity(exact, shape.reference), "about": f"{shape.passes.precision} against float32"}


def _gptq(settings: Settings, device: Device, shape: Shape) -> Row:
    subject = shape.passes.subject
    shape.passes.drop()
    return time_gptq(
        subject,
        device,
        layers=settings.gptq_layers,
        maps=settings.gptq_maps,
        group=shape.group(subject),
    )


def _bundle_steps(settings: Settings, device: Device, telemetry: Telemetry) -> Iterator[Step]:
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory(device: Device) -> float | None:
    return torch.cuda.mem_get_info(device.torch)[1] / MIB if device.is_cuda else None
