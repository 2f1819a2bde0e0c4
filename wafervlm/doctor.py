"""What this machine has of what wafervlm needs, and what to do about the rest."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from wafervlm import workshop
from wafervlm.capabilities import Check, State, examine_capabilities
from wafervlm.cores import usable_cores
from wafervlm.errors import WaferVLMError

OLDEST_PYTHON = (3, 10)
WORKSHOP_DISK_GB = 5.0

# Distribution name to module name, where they differ.
STATION = {"numpy": "numpy", "pillow": "PIL", "click": "click"}
WORKSHOP = (
    *("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "tokenizers"),
    *("onnx", "onnx-ir", "openvino", "scipy", "scikit-learn", "statsmodels", "psutil"),
    *("rich", "matplotlib", "jinja2", "markupsafe", "ml-dtypes", "tensorboard"),
    *("openai", "optuna", "rapidfuzz"),
)


def examine() -> list[Check]:
    """Look at everything; nothing is written and nothing is fetched."""
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _station,
        examine_capabilities,
        _two_runtimes,
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


def _two_runtimes() -> Iterator[Check]:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed(name)]
    if len(both) == 2:
        yield Check(
            "runtimes",
            State.LOOK,
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            "run: pip uninstall onnxruntime onnxruntime-gpu, then install the one that you want",
        )


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
