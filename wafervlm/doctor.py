"""What this machine has of what wafervlm needs, and what to do about the rest."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path

from wafervlm import workshop
from wafervlm.errors import WaferVLMError

OLDEST_PYTHON = (3, 10)
WORKSHOP_DISK_GB = 5.0

# Distribution name to module name, where they differ.
STATION = {"numpy": "numpy", "pillow": "PIL", "click": "click"}
WORKSHOP = (
    *("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "tokenizers"),
    *("onnx", "onnx-ir", "openvino", "scipy", "scikit-learn", "statsmodels", "psutil"),
    *("rich", "matplotlib", "jinja2", "markupsafe", "ml-dtypes", "tensorboard"),
)


class State(Enum):
    """How a check came out. MISSING: prediction does not work without it."""

    OK = "ok"
    LOOK = "look"
    MISSING = "missing"

    @property
    def colour(self) -> str:
        """The colour of the word in a terminal."""
        return {"ok": "green", "look": "yellow", "missing": "red"}[self.value]


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


def examine() -> list[Check]:
    """Look at everything; nothing is written and nothing is fetched."""
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _station,
        _runtime,
        _two_runtimes,
        _openvino,
        _tensorrt,
        _bundle,
        _threads,
        _workshop,
        _torchvision,
        _disk,
    )
    return [check for part in parts for check in part()]


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= OLDEST_PYTHON:
        yield Check("python", State.OK, found)
    else:
        yield Check(
            "python", State.MISSING, found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        )


def _station() -> Iterator[Check]:
    for name, module in STATION.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            yield Check(
                name, State.MISSING, f"cannot be imported: {error}", f"run: pip install --upgrade {name}"
            )
        else:
            yield Check(name, State.OK, installed(name) or "not installed by a package manager")


def _runtime() -> Iterator[Check]:
    from wafervlm.runtimes.onnx import import_onnxruntime

    try:
        ort = import_onnxruntime()
        version, providers = ort.__version__, ort.get_available_providers()
    except (ImportError, AttributeError) as error:
        # Uninstalling one of the two builds leaves the other a folder without its contents.
        yield Check(
            "onnxruntime",
            State.MISSING,
            f"cannot be used: {error}",
            "run: pip install --force-reinstall 'wafervlm[cpu]', or with an NVIDIA GPU 'wafervlm[gpu]'",
        )
        return
    names = ", ".join(str(name).removesuffix("ExecutionProvider") for name in providers)
    yield Check("onnxruntime", State.OK, f"{version} with {names}")


def _two_runtimes() -> Iterator[Check]:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed(name)]
    if len(both) == 2:
        yield Check(
            "runtimes",
            State.LOOK,
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            "run: pip uninstall onnxruntime onnxruntime-gpu, then install the one that you want",
        )


def _openvino() -> Iterator[Check]:
    """Nothing is said of it where it is not installed: ONNX Runtime does without."""
    if importlib.util.find_spec("openvino") is None:
        return
    from wafervlm.runtimes.openvino import import_openvino

    try:
        version = import_openvino().__version__
    except WaferVLMError as error:
        yield Check("openvino", State.LOOK, str(error))
    else:
        yield Check("openvino", State.OK, version.partition("-")[0])


def _tensorrt() -> Iterator[Check]:
    """What engines need; nothing is said of it where none of it is installed."""
    from wafervlm.runtimes.cuda import find_gpu
    from wafervlm.runtimes.tensorrt_package import INSTALL, import_library

    names = [name for name in INSTALL if importlib.util.find_spec(name)]
    for name in names:
        try:
            library = import_library(name)
        except WaferVLMError as error:
            yield Check(name, State.LOOK, str(error))
        else:
            yield Check(name, State.OK, library.version)
    if names or installed("cuda-bindings"):
        try:
            gpu = find_gpu()
        except WaferVLMError as error:
            yield Check("gpu", State.LOOK, str(error), "engines can be built ahead of time, not run")
        else:
            found = f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 1e9:.0f} GB"
            yield Check("gpu", State.OK, f"{found}, driver for CUDA {gpu.driver}")


def _bundle() -> Iterator[Check]:
    from wafervlm.bundle import open_bundle

    try:
        bundle = open_bundle()
    except WaferVLMError as error:
        yield Check("nano bundle", State.MISSING, str(error))
    else:
        yield Check(
            "nano bundle", State.OK, f"{bundle.manifest.name} {bundle.digest[:12]}, all digests match"
        )


def _threads() -> Iterator[Check]:
    usable, cores = usable_cores(), os.cpu_count() or 1
    if usable < cores:
        yield Check(
            "cores", State.LOOK, f"{usable} of {cores} may be used", f"pass --threads {usable} to predict"
        )
    else:
        yield Check("cores", State.OK, f"{cores}")


def _workshop() -> Iterator[Check]:
    if not workshop.is_checkout():
        yield Check("workshop", State.OK, f"not here (only for training and export: {workshop.INSTALL})")
        return
    missing = [name for name in WORKSHOP if not installed(name)]
    if sys.version_info < workshop.OLDEST_PYTHON:
        wanted = ".".join(map(str, workshop.OLDEST_PYTHON))
        yield Check("workshop", State.LOOK, f"needs Python {wanted}", f"install Python {wanted} or newer")
    elif missing:
        yield Check(
            "workshop", State.LOOK, f"lacks {', '.join(missing)}", "run: pip install -e '.[workshop]'"
        )
    else:
        yield Check(
            "workshop", State.OK, f"torch {installed('torch')}, transformers {installed('transformers')}"
        )


def _torchvision() -> Iterator[Check]:
    version = installed("torchvision")
    if version is None:
        return
    # In a process of its own: it imports torch, and a broken one may leave modules half imported.
    run = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False
    )
    if run.returncode == 0:
        yield Check("torchvision", State.OK, version)
        return
    reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
    yield Check(
        "torchvision",
        State.LOOK,
        f"{version} cannot be imported ({reason}), and keeps transformers from loading the models",
        "run: pip uninstall torchvision; nothing here needs it",
    )


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if workshop.is_checkout() and free < WORKSHOP_DISK_GB:
        yield Check("disk", State.LOOK, f"{free:.1f} GB free here", "free some: checkpoints need several GB")
    else:
        yield Check("disk", State.OK, f"{free:.1f} GB free here")


def installed(name: str) -> str | None:
    """The version of the distribution ``name``, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Cores that this process may use: fewer than there are under taskset or in some containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
