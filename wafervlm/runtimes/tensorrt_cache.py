"""KernelCache: what tensorrt_rtx compiled for this GPU, kept for the next start."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

from wafervlm.engine_manifest import Place
from wafervlm.errors import UsageError
from wafervlm.files import write_whole
from wafervlm.runtimes.tensorrt_api import IRuntimeCache
from wafervlm.runtimes.tensorrt_package import Library

log = logging.getLogger(__name__)


class KernelCache:
    """tensorrt_rtx's runtime cache, one file for each engine, GPU and driver in a folder of the user's."""

    def __init__(self, library: Library, folder: Path | None, digest: str, place: Place) -> None:
        """``digest`` is the sha256 of the engine's file."""
        if folder is not None and library.rtx is None:
            raise UsageError(
                "a runtime cache is for engines of tensorrt_rtx, which compiles kernels when it starts; this "
                "engine was built by tensorrt and needs none: leave --runtime-cache out"
            )
        words = (place.gpu.replace(" ", "-"), place.compute_capability, place.driver, place.builder_version)
        name = "-".join((digest[:16], *words))
        self._path = folder / f"{name}.cache" if folder else None
        self._cache: IRuntimeCache | None = None
        self._known = b""
        self._shapes: set[int] = set()

    def fill(self, make: Callable[[], IRuntimeCache]) -> IRuntimeCache | None:
        """A cache with what is kept, None where the user names no folder."""
        if self._path is None:
            return None
        cache = self._cache = make()
        with contextlib.suppress(OSError):
            self._known = self._path.read_bytes()
        if self._known and not cache.deserialize(self._known):
            log.info("%s does not fit this machine any more and is made anew", self._path)
            self._known = b""
        return cache

    def keep(self, shape: int) -> None:
        """Write what was compiled for ``shape``, a number of images or a profile, once for each; a folder
        that cannot be written is a warning, and not tried again."""
        path, cache = self._path, self._cache
        if path is None or cache is None or shape in self._shapes:
            return
        self._shapes.add(shape)
        data = bytes(memoryview(cast(bytes, cache.serialize())))
        if data == self._known:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data, sync=False)
            self._known = data
        except OSError as error:
            self._cache = None
            log.warning("the runtime cache %s cannot be kept: %s", path, error)
