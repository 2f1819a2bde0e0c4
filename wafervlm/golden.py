"""Golden maps: wafers whose reference scores a bundle must reproduce wherever it runs."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import GOLDEN, Bundle
from wafervlm.errors import IntegrityError, UsageError
from wafervlm.manifest import Manifest
from wafervlm.wafermap import WaferMap

MAX_BYTES = 256 << 20
_ARRAYS = ("maps", "offsets", "heights", "widths", "labels", "reference")
_DEPLOYED = "deployed"
_EPOCH = (1980, 1, 1, 0, 0, 0)
# What zipfile, zlib and numpy raise for bytes that are no such archive; RuntimeError is an encrypted entry.
_UNREADABLE = (
    *(ValueError, KeyError, IndexError, EOFError, OSError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, UsageError),
)


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """N wafers, the label of each ("" where it has none), and ``reference`` float32 (N, L): their label
    log-probabilities as the checkpoint gives them, before temperature."""

    maps: tuple[WaferMap, ...]
    labels: tuple[str, ...]
    reference: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(self.maps))
        object.__setattr__(self, "labels", tuple(self.labels))
        reference = np.array(self.reference, dtype=np.float32)
        reference.flags.writeable = False
        object.__setattr__(self, "reference", reference)
        count = len(self.maps)
        if not count or len(self.labels) != count or reference.ndim != 2 or reference.shape[0] != count:
            raise UsageError(
                f"golden maps need one label and one row of reference scores each: {count} maps, "
                f"{len(self.labels)} labels, reference of shape {reference.shape}"
            )
        if not np.isfinite(reference).all():
            raise UsageError(
                "the golden maps' reference scores are not finite; the checkpoint gave no answer"
            )


def write_golden(path: str | Path, golden: Golden, manifest: Manifest | None = None) -> None:
    """Write ``golden`` as an .npz whose bytes depend on its content alone. With ``manifest`` go the settings
    of its that answers depend on besides the files, so that a change of them is seen: ``check_deployed``."""
    grids = [wafer.dies for wafer in golden.maps]
    sizes = [grid.size for grid in grids]
    arrays: dict[str, NDArray[np.generic]] = {
        "maps": np.concatenate([grid.ravel() for grid in grids]),
        "offsets": np.concatenate([[0], np.cumsum(sizes)]).astype("<i8"),
        "heights": np.array([grid.shape[0] for grid in grids], dtype="<i2"),
        "widths": np.array([grid.shape[1] for grid in grids], dtype="<i2"),
        "labels": np.array(golden.labels, dtype=np.str_),
        "reference": golden.reference.astype("<f4"),
    }
    if manifest is not None:
        text = json.dumps(_deployed(manifest), sort_keys=True)
        arrays[_DEPLOYED] = np.frombuffer(text.encode(), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())


def read_golden(bundle: Bundle) -> Golden:
    """Read the golden maps of ``bundle``. Raises IntegrityError where they are not what they must be."""
    where = bundle.path / GOLDEN
    data = bundle.read(GOLDEN)
    try:
        golden = _parse(data)
    except _UNREADABLE as error:
        raise IntegrityError(
            f"the golden maps {where} cannot be read: {error}; export the bundle again"
        ) from None
    labels = bundle.manifest.task.labels
    if golden.reference.shape[1] != len(labels):
        raise IntegrityError(
            f"the golden maps {where} have scores for {golden.reference.shape[1]} labels and the task has "
            f"{len(labels)}; export the bundle again"
        )
    return golden


def check_deployed(bundle: Bundle) -> None:
    """Refuse a bundle whose manifest gives its temperature, or another setting that answers depend on,
    otherwise than when its golden maps were written; bundles from before these were kept with them pass.
    Raises IntegrityError."""
    try:
        kept = _kept(bundle.read(GOLDEN))
    except _UNREADABLE as error:
        raise IntegrityError(
            f"the golden maps {bundle.path / GOLDEN} cannot be read: {error}; export the bundle again"
        ) from None
    for name, value in _deployed(bundle.manifest).items():
        if name in kept and kept[name] != value:
            raise IntegrityError(
                f"{name} in the manifest of bundle {bundle.path} is {value!r}, and it was exported with "
                f"{kept[name]!r}: it was changed afterwards; copy the bundle again from where it was exported"
            )


def _deployed(manifest: Manifest) -> dict[str, float | str]:
    return {
        "temperature": manifest.temperature,
        "threshold": manifest.threshold,
        "accuracy_level": manifest.graph.accuracy_level,
        "vision": manifest.graph.vision,
        "verify_tolerance": manifest.verify_tolerance,
    }


def _kept(data: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if f"{_DEPLOYED}.npy" not in archive.namelist():
            return {}
        if archive.getinfo(f"{_DEPLOYED}.npy").file_size > MAX_BYTES:
            raise ValueError(f"they unpack to more than {MAX_BYTES >> 20} MiB")
        kept = json.loads(_array(archive, _DEPLOYED).tobytes())
    if not isinstance(kept, dict):
        raise ValueError("the settings in them are no table")
    return kept


def _parse(data: bytes) -> Golden:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise ValueError(f"they unpack to more than {MAX_BYTES >> 20} MiB")
        arrays = {name: _array(archive, name) for name in _ARRAYS}
    offsets, shapes = (
        arrays["offsets"].astype(np.int64),
        zip(arrays["heights"], arrays["widths"], strict=True),
    )
    maps = [
        WaferMap(arrays["maps"][start:stop].reshape(int(height), int(width)))
        for start, stop, (height, width) in zip(offsets[:-1], offsets[1:], shapes, strict=True)
    ]
    return Golden(tuple(maps), tuple(str(label) for label in arrays["labels"]), arrays["reference"])


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
