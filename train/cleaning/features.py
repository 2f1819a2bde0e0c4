"""The features that labels are judged by: measured on the dies, and seen by a checkpoint's vision tower."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.cleaning.geometry import NAMES, geometry_features
from train.cleaning.partial import Partial
from train.progress import track
from train.sources.npz import load_arrays
from train.sources.rows import Rows
from wafervlm.errors import FileFormatError
from wafervlm.files import check_writable, write_whole
from wafervlm.render import RenderSpec

Floats = NDArray[np.float64]
_STORED = ("geometry", "vision", "made_from")


@dataclass(frozen=True, slots=True)
class Features:
    """Of N maps: ``geometry`` (N, G) float64 and ``vision`` (N, V) float64."""

    geometry: Floats
    vision: Floats


def read_features(
    rows: Rows, base: Path, *, spec: RenderSpec | None = None, device: str = "cpu", keep: Path | None = None
) -> Features:
    """Features of all ``rows`` with the vision tower of the checkpoint ``base``, looked at in the size of
    ``spec`` where it takes that. ``keep`` is a file that they are written to, a .npz whatever its name, and
    read from where it holds those of the same maps and checkpoint; a run that was stopped is gone on with.
    Raises CheckpointError, FileFormatError where ``keep`` is another file, and UsageError where it could not
    be written."""
    from train.artefact import folder_digest

    made_from = np.array([folder_digest(base), "\n".join(rows.digests.tolist()), str(spec), "\n".join(NAMES)])
    if keep is not None and keep.exists():
        stored = _stored(keep)
        if np.array_equal(stored["made_from"], made_from):
            return Features(stored["geometry"], stored["vision"])
    if keep is None:
        return _compute(rows, base, spec, device, None)
    check_writable(keep)
    digest = hashlib.sha256("\0".join(made_from.tolist()).encode()).hexdigest()
    partial = Partial(keep.with_name(f"{keep.name}.partial"), digest)
    found = _compute(rows, base, spec, device, partial)
    write_whole(keep, _packed(found, made_from))
    partial.remove()
    return found


def _stored(keep: Path) -> dict[str, Any]:
    try:
        return load_arrays(keep, _STORED)
    except FileFormatError:
        raise FileFormatError(
            f"{keep} holds no features that wafervlm data clean kept; name another file, which is then "
            "written, or remove it"
        ) from None


def _packed(found: Features, made_from: Any) -> bytes:
    # Given a name, numpy would add .npz to it.
    file = io.BytesIO()
    arrays = {"geometry": found.geometry, "vision": found.vision, "made_from": made_from}
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _compute(
    rows: Rows, base: Path, spec: RenderSpec | None, device: str, partial: Partial | None
) -> Features:
    from train.cleaning.vision import native_spec, vision_features
    from train.loading import load_checkpoint

    checkpoint = load_checkpoint(base, device=device)
    grids = [rows.grid(row) for row in range(len(rows))]
    seen = vision_features(checkpoint, grids, native_spec(checkpoint, spec), partial=partial)
    vision = seen.astype(np.float64)
    measured = np.stack([geometry_features(grid) for grid in track(grids, "measure dies")])
    return Features(measured, vision)
