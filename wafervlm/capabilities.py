"""What can be done here: one line for each, with the one command that brings what is absent."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from importlib.util import find_spec

from wafervlm.errors import WaferVLMError


class State(Enum):
    """How a check came out. MISSING: nothing can predict without it; ABSENT: only what it names is not
    there."""

    OK = "ok"
    LOOK = "look"
    ABSENT = "absent"
    MISSING = "missing"

    @property
    def colour(self) -> str:
        """The colour of the word in a terminal."""
        return {"ok": "green", "look": "yellow", "absent": "bright_black", "missing": "red"}[self.value]


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked at, what was found, and what to do where something is amiss."""

    name: str
    state: State
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return {**asdict(self), "state": self.state.value}


def examine_capabilities() -> Iterator[Check]:
    """A line for each runtime that predicts, for words, their check, and archives; a last one where no
    runtime can predict."""
    runtimes = [_onnx(), _onnx_cuda(), _openvino(), _tensorrt()]
    yield from runtimes
    # OpenVINO generates no text.
    yield _describe(any(check.state is State.OK for check in runtimes if "openvino" not in check.name))
    yield _extra("check of words", ("scipy",), "words")
    yield _extra("score", ("ray", "pyarrow"), "archive")
    if not any(check.state is State.OK for check in runtimes):
        yield Check(
            "predict",
            State.MISSING,
            "there is no runtime that can execute a graph here",
            _advice(runtimes[0]) or "run: pip install 'wafervlm[cpu]'",
        )


def _advice(check: Check) -> str:
    return check.advice.partition(", or take")[0]


def _onnx() -> Check:
    from wafervlm.runtimes.onnx import import_onnxruntime

    name = "predict, onnx"
    try:
        ort = import_onnxruntime()
        providers = ort.get_available_providers()
    except WaferVLMError as error:
        return _fault(name, error)
    names = ", ".join(str(each).removesuffix("ExecutionProvider") for each in providers)
    return Check(name, State.OK, f"onnxruntime {ort.__version__} with {names}")


def _onnx_cuda() -> Check:
    from wafervlm.runtimes.onnx import INSTALL, PROVIDERS, import_onnxruntime

    name, advice = "predict, onnx-cuda", f"run: {INSTALL['cuda']}"
    try:
        ort = import_onnxruntime()
    except WaferVLMError:
        return Check(name, State.ABSENT, "needs onnxruntime-gpu", "run: pip install 'wafervlm[gpu]'")
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        return Check(name, State.ABSENT, "this ONNX Runtime is built without CUDA", f"with a GPU {advice}")
    gpu = _gpu()
    return Check(name, State.OK if gpu.state is State.OK else State.LOOK, gpu.found, gpu.advice)


def _openvino() -> Check:
    from wafervlm.runtimes.openvino import import_openvino

    name = "predict, openvino"
    try:
        return Check(name, State.OK, f"openvino {import_openvino().__version__.partition('-')[0]}")
    except WaferVLMError as error:
        return _fault(name, error)


def _tensorrt() -> Check:
    """What engines need. To build one ahead of time no GPU is needed."""
    from wafervlm.runtimes.tensorrt_package import INSTALL, RTX, import_library

    name, found = "predict, tensorrt", []
    for package in INSTALL:
        if find_spec(package) is None:
            continue
        try:
            found.append(f"{package} {import_library(package).version}")
        except WaferVLMError as error:
            return _fault(name, error)
    if not found:
        what = "neither tensorrt_rtx nor tensorrt is installed"
        return Check(name, State.ABSENT, what, f"run: {INSTALL[RTX]}")
    gpu = _gpu()
    said = f"{', '.join(found)}; {gpu.found}"
    if gpu.state is State.OK:
        return Check(name, State.OK, said)
    return Check(name, State.LOOK, f"{said}; engines can be built ahead of time, not run", gpu.advice)


def _describe(can_run: bool) -> Check:
    name = "describe"
    if not can_run:
        return Check(
            name, State.ABSENT, "needs ONNX Runtime, or TensorRT", "run: pip install 'wafervlm[cpu,words]'"
        )
    return _extra(name, ("tokenizers",), "words")


def _extra(name: str, modules: Sequence[str], extra: str) -> Check:
    absent = [module for module in modules if find_spec(module) is None]
    install = f"run: pip install 'wafervlm[{extra}]'"
    if absent:
        return Check(name, State.ABSENT, f"lacks {', '.join(absent)}", install)
    try:
        versions = [f"{module} {importlib.import_module(module).__version__}" for module in modules]
    except Exception as error:
        return Check(
            name, State.LOOK, f"{', '.join(modules)} cannot be used ({error})", f"{install} --force-reinstall"
        )
    return Check(name, State.OK, ", ".join(versions))


def _gpu() -> Check:
    from wafervlm.runtimes.cuda import find_gpu

    try:
        gpu = find_gpu()
    except WaferVLMError as error:
        return _fault("gpu", error)
    found = f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.0f} GB"
    return Check("gpu", State.OK, f"{found}, driver for CUDA {gpu.driver}")


def _fault(name: str, error: WaferVLMError) -> Check:
    """What ``error`` says of the package, apart from what it says to do."""
    found, _, advice = str(error).partition("; ")
    absent = found.endswith("is not installed")
    return Check(
        name, State.ABSENT if absent else State.LOOK, found, advice.replace("install it with", "run")
    )
