"""Where labelled wafer maps come from: one reader per public format, all returning ``Rows``."""

from __future__ import annotations

import zipfile
from pathlib import Path

from train.sources.rows import Rows
from wafervlm.errors import DatasetError, FileFormatError
from wafervlm.render import RenderSpec

__all__ = ["SYNTHETIC", "Rows", "read_source"]

SYNTHETIC = "synthetic"


def read_source(path: Path, spec: RenderSpec | None = None) -> Rows:
    """Read the labelled rows of ``path``: a WM-811K pickle, a .npz of WM-811K or MixedWM38, or a folder of
    class folders, whose images show the palette of ``spec``. The path "synthetic" gives drawn maps, the same
    each time. Raises FileFormatError or DatasetError."""
    path = Path(path)
    if str(path) == SYNTHETIC:
        from train.sources.drawn import drawn_rows

        return drawn_rows()
    if not path.exists():
        raise DatasetError(f"{path} does not exist; give a .pkl, a .npz or a folder of class folders")
    if path.is_dir():
        from train.sources.folders import read_folders

        return read_folders(path, spec)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in (".pkl", ".pickle"):
        from train.sources.lswmd import read_lswmd

        return read_lswmd(path)
    raise FileFormatError(f"{path} is neither a .pkl, nor a .npz, nor a folder of class folders")


def _read_npz(path: Path) -> Rows:
    from train.sources.mixedwm38 import read_mixedwm38
    from train.sources.npz import read_npz

    try:
        with zipfile.ZipFile(path) as archive:
            mixed = "labels8.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} is not a .npz file: {error}") from None
    return read_mixedwm38(path) if mixed else read_npz(path)
