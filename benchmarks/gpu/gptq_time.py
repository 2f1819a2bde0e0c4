"""How long GPTQ takes on this device: a few decoder layers, and from them the whole model."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from benchmarks.gpu.device import MIB, Device
from benchmarks.gpu.subject import Subject
from calibrate.gptq import Scheme
from calibrate.layers import quantize_layer
from calibrate.replay import begin, check_exact, text_core
from train.encoding import encode
from wafervlm.render import RgbImage


@torch.no_grad()
def time_gptq(
    subject: Subject, device: Device, *, layers: int, maps: int, group: int, at_once: int = 8
) -> dict[str, Any]:
    """Quantize the first ``layers`` decoder layers on ``maps`` conversations with their answers, ``at_once``
    at a time. Seconds of each layer, and of all layers if the others take as long as these do on average;
    the first is left out of the average where there are more, since it warms up.

    ``memory_peak_mib`` counts the model too. The model gets its weights back.
    """
    model = subject.checkpoint.model
    core = text_core(model)
    layers = min(layers, len(core.layers))
    images, labels = _conversations(subject, maps)
    kept = copy.deepcopy([layer.state_dict() for layer in core.layers[:layers]])
    device.wait()
    started = time.perf_counter()
    batches = [
        begin(
            model,
            encode(subject.checkpoint, subject.task, images[i : i + at_once], labels[i : i + at_once]),
        )
        for i in range(0, maps, at_once)
    ]
    device.wait()
    entrance, seconds, rows = time.perf_counter() - started, [], []
    try:
        with device.watching() as memory:
            for index in range(layers):
                started = time.perf_counter()
                rows += quantize_layer(model, index, batches, Scheme(group=group)).rows
                device.wait()
                seconds.append(time.perf_counter() - started)
    finally:
        for layer, state in zip(core.layers, kept, strict=False):
            layer.load_state_dict(state)
    steady = seconds[1:] or seconds
    whole = entrance + sum(seconds) + sum(steady) / len(steady) * (len(core.layers) - layers)
    return {
        "layers": layers,
        "of_layers": len(core.layers),
        "maps": maps,
        "tokens": rows[0]["tokens"],
        "entrance_seconds": entrance,
        "layer_seconds": seconds,
        "whole_seconds": whole,
        "how": f"measured on {layers} of {len(core.layers)} layers; the others taken as long as "
        + ("the second and later ones are on average" if len(seconds) > 1 else "this one"),
        "memory_peak_mib": None if memory.peak is None else (memory.before + memory.peak) / MIB,
        "layer_error": sum(row["error"] for row in rows) / len(rows),
        "layer_error_nearest": sum(row["error_nearest"] for row in rows) / len(rows),
    }


@torch.no_grad()
def replay_error(subject: Subject, maps: int = 8) -> float:
    """How far the hidden states that GPTQ replays layer by layer are from the full forward's, on ``maps``
    conversations, over the largest of their layer. Raises SetupError where it is more than rounding."""
    images, labels = _conversations(subject, maps)
    return check_exact(subject.checkpoint.model, encode(subject.checkpoint, subject.task, images, labels))


def _conversations(subject: Subject, maps: int) -> tuple[list[RgbImage], list[str]]:
    """Images and labels that answer them, each as often as it takes."""
    images = [subject.images[i % len(subject.images)] for i in range(maps)]
    return images, [subject.task.labels[i % len(subject.task.labels)] for i in range(maps)]
