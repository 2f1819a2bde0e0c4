"""The passes that are timed against each other, from inputs on the device to label scores on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.gpu.capture import Captured
from benchmarks.gpu.device import Device, weight_bytes
from benchmarks.gpu.linear import Linear, check, make_form
from benchmarks.gpu.prompted import Generate, OneForward, RecordedForward, answer_length
from benchmarks.gpu.static import StaticPass
from benchmarks.gpu.subject import Subject
from wafervlm.errors import ProviderError

NO_GRAPH = "a CUDA graph needs a CUDA device"


@dataclass(frozen=True)
class Ready:
    """A pass that can be called: ``call`` on one of ``inputs``, each a batch of its own of ``batch`` images;
    the bytes of its ``weights``; whether it is one CUDA graph (``captured``); ``about`` in words; the
    relative error of each of its kernels."""

    call: Callable[[torch.Tensor], torch.Tensor]
    inputs: Sequence[torch.Tensor]
    batch: int
    weights: int
    captured: bool
    about: str
    kernel_errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class StaticKind:
    """How a static pass is run: the forms of its text core and vision tower, as a recorded graph or kernel
    by kernel (``eager``), and whether torch.compile fuses what lies between products."""

    text: str = "dense"
    vision: str = "dense"
    eager: bool = False
    compiled: bool = False


STATIC: dict[str, StaticKind] = {
    "static": StaticKind(eager=True),
    "static-captured": StaticKind(),
    "static-compiled": StaticKind(compiled=True),
    "static-int4": StaticKind(text="int4"),
    "static-int4-triton": StaticKind(text="int4-triton"),
    "static-int4-triton-compiled": StaticKind(text="int4-triton", compiled=True),
    "static-fp8": StaticKind(text="fp8", vision="fp8"),
    "static-fp8-compiled": StaticKind(text="fp8", vision="fp8", compiled=True),
}
PROMPTED = ("forward", "forward-captured", "generate")
# On the CPU, quantized passes run kernel by kernel too.
_ANYWHERE = ("forward", "generate", "static", "static-int4", "static-fp8")
# Those that compile need most of a minute.
SECONDS = {
    **dict.fromkeys(PROMPTED, 8.0),
    **{name: 45.0 if kind.compiled else 12.0 for name, kind in STATIC.items()},
}


class Passes:
    """Makes the passes of one subject. The static module that was made last is kept: passes that differ only
    in how it is called share it."""

    def __init__(self, subject: Subject, device: Device, group: int, answer_tokens: int = 0) -> None:
        self.subject, self._device, self._group = subject, device, group
        self.answer_tokens = answer_tokens or answer_length(subject)
        self._made: tuple[tuple[str, str, bool], StaticPass, dict[str, float]] | None = None

    def inputs(self, name: str, batch: int) -> list[torch.Tensor]:
        """What the pass ``name`` is called on: images, or patches from transformers' image processor."""
        return self.subject.patches(batch) if name in PROMPTED else self.subject.pixels(batch)

    def prepare(self, name: str) -> None:
        """Make the module of the pass ``name``. Raises ProviderError where this device cannot run it, and
        GateError where a kernel does not compute what it should."""
        if not self._device.is_cuda and name not in _ANYWHERE:
            raise ProviderError(NO_GRAPH)
        if name in STATIC:
            self.static(STATIC[name])

    def ready(self, name: str, batch: int, inputs: Sequence[torch.Tensor]) -> Ready:
        """The pass ``name`` at ``batch``; raises as ``prepare`` does."""
        self.prepare(name)
        if name in PROMPTED:
            return self._prompted(name, batch, inputs)
        kind = STATIC[name]
        module, errors = self.static(kind)
        captured = self._device.is_cuda and not kind.eager
        call = Captured(module, inputs[0]) if captured else _quiet(module)
        text = self.precision if kind.text == "dense" else kind.text
        vision = self.precision if kind.vision == "dense" else kind.vision
        about = f"our static pass, text in {text}, vision in {vision}"
        about += ", fused by torch.compile" if kind.compiled else ""
        return Ready(call, inputs, batch, weight_bytes(module), captured, about, errors)

    @property
    def precision(self) -> str:
        """The name of full precision."""
        return str(self.subject.dtype).removeprefix("torch.")

    def static(self, kind: StaticKind) -> tuple[StaticPass, dict[str, float]]:
        """The module of ``kind``, and the relative error of a layer of each of its kernels."""
        key = kind.text, kind.vision, kind.compiled
        if self._made is None or self._made[0] != key:
            self._made = None
            self._device.free()
            forms = [make_form(name, self._device.torch, self._group) for name in (kind.text, kind.vision)]
            module = StaticPass(self.subject.checkpoint, self.subject.task, text=forms[0], vision=forms[1])
            errors = _check_kernels(module, self.subject.dtype)
            if kind.compiled:
                # Else what was compiled for other forms counts towards the limit, past which nothing is.
                torch._dynamo.reset()
                module.compile_blocks()
            self._made = key, module, errors
        return self._made[1], self._made[2]

    def drop(self) -> None:
        """Free the static module."""
        self._made = None
        self._device.free()

    def _prompted(self, name: str, batch: int, inputs: Sequence[torch.Tensor]) -> Ready:
        weights = weight_bytes(self.subject.checkpoint.network)
        if name == "generate":
            about = f"transformers, generate, {self.answer_tokens} tokens, {self.precision}"
            generate = Generate(self.subject, batch, self.answer_tokens)
            return Ready(generate, inputs, batch, weights, False, about, {})
        if name == "forward":
            about = f"transformers, one forward over prompt and label tree, {self.precision}"
            return Ready(_quiet(OneForward(self.subject, batch)), inputs, batch, weights, False, about, {})
        recorded = RecordedForward(self.subject, batch).eval()
        about = f"transformers' modules, one forward as one CUDA graph, {self.precision}"
        return Ready(Captured(recorded, inputs[0]), inputs, batch, weights, True, about, {})


def outputs_of(ready: Ready, count: int) -> torch.Tensor:
    """What ``ready`` gives for all ``count`` maps, (count, ...) on the host, batch by batch."""
    starts = range(0, count, ready.batch)
    return torch.cat([ready.call(ready.inputs[first])[: count - first].cpu() for first in starts])


def _quiet(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    module.eval()

    @torch.no_grad()
    def call(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = module(x)
        return out

    return call


def _check_kernels(module: StaticPass, dtype: torch.dtype) -> dict[str, float]:
    """One layer of each form that is not dense, at the rows of one image."""
    errors: dict[str, float] = {}
    for layer in module.modules():
        if isinstance(layer, Linear) and layer.kind != "dense" and layer.kind not in errors:
            errors[layer.kind] = check(layer, module.computed_tokens, dtype)
    return errors
