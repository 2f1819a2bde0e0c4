"""A folder of wafer maps sorted into one folder for each class: images, or die grids as .npy, .csv, .txt."""

from __future__ import annotations

import csv
from pathlib import Path

from train.progress import track
from train.sources.rows import Rows, rows_of_grids
from wafervlm.errors import DatasetError, FileFormatError
from wafervlm.readers import ARRAY_SUFFIXES, GRID_SUFFIXES, IMAGE_SUFFIXES, read_file
from wafervlm.render import RenderSpec
from wafervlm.wafermap import WaferMap

SUFFIXES = (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES, *GRID_SUFFIXES)
LOTS = "lots.csv"


def read_folders(path: Path, spec: RenderSpec | None = None) -> Rows:
    """Read ``path/{Class}/*``; the class is the folder's name, rows are in the order of the names.

    Images must show the palette of ``spec`` and are read back to dies. ``path/lots.csv`` with the columns
    ``file`` ("Class/name.png") and ``lot`` says which lot a file belongs to; without it lots are unknown.
    Raises DatasetError for a folder without maps and a lots.csv that names a missing file; what the readers
    refuse stays their error.
    """
    path, spec = Path(path), spec or RenderSpec()
    classes = sorted(
        folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )
    if not classes:
        raise DatasetError(f"{path} has no class folders; it must hold one folder of maps for each class")
    files = [file for folder in classes for file in _files(folder)]
    lots = _lots(path, files)
    grids = [_read(file, spec).dies for file in track(files, f"read {path.name}")]
    return rows_of_grids(grids, [file.parent.name for file in files], lots=lots, ordered=False)


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DatasetError(f"class folder {folder} is empty: it has no {', '.join(SUFFIXES)} file")
    return files


def _read(file: Path, spec: RenderSpec) -> WaferMap:
    wafer = read_file(file, spec)
    if not isinstance(wafer, WaferMap):
        raise DatasetError(f"{file} is not a picture of a wafer map in the task's colours")
    return wafer


def _lots(path: Path, files: list[Path]) -> list[str]:
    if not (path / LOTS).is_file():
        return [""] * len(files)
    with (path / LOTS).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"file", "lot"} <= set(reader.fieldnames or ()):
            raise FileFormatError(f"{path / LOTS} must have the columns file and lot")
        lots = {row["file"]: row["lot"] for row in reader}
    names = [file.relative_to(path).as_posix() for file in files]
    strangers = sorted(set(lots) - set(names))
    if strangers:
        raise DatasetError(f"{path / LOTS} names {strangers[0]}, which is not there")
    return [lots.get(name, "") for name in names]
