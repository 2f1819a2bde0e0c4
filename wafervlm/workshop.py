"""The workshop: the folders beside the package in a checkout, which the wheel does not ship.

``wafervlm train`` runs the folder ``train`` beside this package. Somebody's site-packages may hold
another ``train``, so the folder is taken only from a checkout of this project, and it wins.
"""

from __future__ import annotations

import importlib
import re
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

from wafervlm.errors import WorkshopError

FOLDERS = ("train", "calibrate", "export", "benchmarks")
ROOT = Path(__file__).resolve().parent.parent

INSTALL = "get a checkout of the project and run there: pip install -e '.[workshop]'"
OLDEST_PYTHON = (3, 11)
_NAME = re.compile(r"""^name\s*=\s*["']wafervlm["']""", re.MULTILINE)
_VERSION = re.compile(r"""^version\s*=\s*["']([^"']+)["']""", re.MULTILINE)


def is_checkout(root: Path = ROOT) -> bool:
    """Whether ``root`` is a checkout of this project: our pyproject.toml and every workshop folder."""
    whole = all((root / folder / "__init__.py").is_file() for folder in FOLDERS)
    return whole and _NAME.search(_project_file(root)) is not None


def load(module: str, root: Path = ROOT) -> ModuleType:
    """Import the workshop module ``module``, such as ``train.commands``, from the checkout at ``root``.

    Raises WorkshopError where there is no checkout, where Python is too old for it, or where another
    package of that name is loaded already.
    """
    if not is_checkout(root):
        raise WorkshopError(f"this command belongs to the workshop, which the wheel does not ship; {INSTALL}")
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        raise WorkshopError(
            f"the workshop needs Python {wanted} or newer, and this is {sys.version.split()[0]}"
        )
    put_first(root)
    package = importlib.import_module(module.partition(".")[0])
    if not is_inside(package, root):
        raise WorkshopError(
            f"another package called {package.__name__!r} was imported before wafervlm's own, from "
            f"{_origin(package)}; run the command in a fresh process"
        )
    return importlib.import_module(module)


def put_first(root: Path) -> None:
    """Have the modules of ``root`` win over others of the same names."""
    sys.path[:] = [str(root), *(entry for entry in sys.path if entry != str(root))]
    importlib.invalidate_caches()


def is_inside(module: ModuleType, root: Path) -> bool:
    """Whether ``module`` was loaded from beneath ``root``."""
    origin = _origin(module)
    return origin is not None and root in Path(origin).resolve().parents


def version() -> str:
    """The version that is running: the checkout's where this is one, else the installed one."""
    found = _VERSION.search(_project_file(ROOT)) if is_checkout() else None
    if found:
        return found[1]
    try:
        return metadata.version("wafervlm")
    except metadata.PackageNotFoundError:
        return "unknown"


def _origin(module: ModuleType) -> str | None:
    # A folder without __init__.py has no file, only the places where it was found.
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)


def _project_file(root: Path) -> str:
    try:
        return (root / "pyproject.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
