"""TensorRT's two packages: ``tensorrt_rtx`` builds ahead of time, ``tensorrt`` for the GPU it runs on."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from dataclasses import dataclass
from typing import Any, cast

from wafervlm.errors import MissingDependencyError, import_fault
from wafervlm.runtimes.tensorrt_api import ILogger, Package, RtxPackage, Severity

log = logging.getLogger(__name__)

RTX, TENSORRT = "tensorrt_rtx", "tensorrt"
INSTALL = {RTX: "pip install 'wafervlm[tensorrt-rtx]'", TENSORRT: "pip install 'wafervlm[tensorrt]'"}
KEPT_MESSAGES = 20


class Messages:
    """What TensorRT last complained of; its calls return None or False and say why only to a logger."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Keep ``text``, of which only the last few stay."""
        with self._lock:
            self._texts = [*self._texts, text][-KEPT_MESSAGES:]

    def take(self) -> list[str]:
        """The messages since the last call, oldest first."""
        with self._lock:
            texts, self._texts = self._texts, []
            return texts


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two packages, imported, with the logger that all of its objects must share."""

    name: str
    module: Package
    logger: ILogger
    messages: Messages

    @property
    def version(self) -> str:
        """Its own version, as in 1.7.1.116."""
        return self.module.__version__

    @property
    def rtx(self) -> RtxPackage | None:
        """The module where it is tensorrt_rtx, which has more names."""
        return cast(RtxPackage, self.module) if self.name == RTX else None

    def reason(self) -> str:
        """What it complained of since it was last asked, in one line."""
        texts = self.messages.take()
        return " ".join(texts[-1].split())[:300] if texts else "it gave no reason"


@functools.cache
def import_library(name: str) -> Library:
    """Import ``tensorrt_rtx`` or ``tensorrt``. Raises MissingDependencyError."""
    try:
        module = importlib.import_module(name)
        version = module.__version__
    # Its own loader raises FileNotFoundError, OSError or RuntimeError for a shared library it lacks.
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{name} {import_fault(name, error)}; install it with: {INSTALL[name]}"
        ) from None
    log.debug("%s %s", name, version)
    messages = Messages()
    return Library(name, cast(Package, module), _logger(module, messages), messages)


def installed() -> tuple[str, ...]:
    """Which of the two packages can be imported."""
    found = []
    for name in (TENSORRT, RTX):
        try:
            import_library(name)
        except MissingDependencyError:
            continue
        found.append(name)
    return tuple(found)


def _logger(module: Any, messages: Messages) -> ILogger:
    """One logger for the process: TensorRT refuses a second one beside it."""
    error, warning = module.ILogger.Severity.ERROR, module.ILogger.Severity.WARNING

    class Relay(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Severity, msg: str) -> None:
            if severity <= error:
                messages.add(msg)
            log.log(logging.WARNING if severity <= warning else logging.DEBUG, "%s", msg)

    return cast(ILogger, Relay())
