"""The rows of one shape: what each measures."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from benchmarks.gpu.device import MIB, Device, time_calls, weight_bytes
from benchmarks.gpu.floor import measure_floor
from benchmarks.gpu.gptq_time import replay_error, time_gptq
from benchmarks.gpu.kernels import profile_pass
from benchmarks.gpu.nvml import Telemetry
from benchmarks.gpu.parity import Floats, agreement, parity
from benchmarks.gpu.passes import STATIC, Passes, Ready, outputs_of
from benchmarks.gpu.prompted import labels_written
from benchmarks.gpu.results import Row
from benchmarks.gpu.settings import NANO, Settings
from benchmarks.gpu.subject import Subject, make_subject
from train.encoding import encode
from train.scorer import TreePass
from wafervlm import console
from wafervlm.errors import ProviderError
from wafervlm.latency import summarise

ENERGY_SECONDS = 2.0
# As the embedded bundle is quantized.
NANO_GROUP = 32
# The pass whose products the floor is taken of; it is measured while that module is there.
FLOOR_AFTER = "static-captured"


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


def time_pass(
    which: str, batch: int, settings: Settings, device: Device, telemetry: Telemetry, shape: Shape
) -> Row:
    """A pass timed, with its memory, its parity and its energy."""
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


def floor(batch: int, settings: Settings, device: Device, shape: Shape) -> Row:
    """The floor of the products of FLOOR_AFTER."""
    passes = shape.passes
    module, _ = passes.static(STATIC[FLOOR_AFTER])
    matrices = module.matrices(passes.subject.pixels(batch)[0])
    return {
        "computed_tokens": module.computed_tokens,
        "fixed_tokens": module.fixed_tokens,
        **measure_floor(device, matrices, passes.subject.dtype, shape.group(passes.subject)),
    }


def profile(which: str, batch: int, device: Device, shape: Shape) -> Row:
    """The kernels of one call of a pass."""
    ready = shape.passes.ready(which, batch, shape.passes.inputs(which, batch))
    row = profile_pass(device, lambda: ready.call(ready.inputs[-1]))
    return {**row, "about": ready.about}


def against_float32(device: Device, shape: Shape) -> Row:
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


def replay(shape: Shape) -> Row:
    """Whether GPTQ's layer by layer is the full forward."""
    subject = shape.passes.subject
    shape.passes.drop()
    return {"replay_error": replay_error(subject)}


def gptq(settings: Settings, device: Device, shape: Shape) -> Row:
    """How long GPTQ takes."""
    subject = shape.passes.subject
    shape.passes.drop()
    return time_gptq(
        subject,
        device,
        layers=settings.gptq_layers,
        maps=settings.gptq_maps,
        group=shape.group(subject),
    )
