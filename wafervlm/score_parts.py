"""The parts of a scored archive: their maps on the way to an actor, and their Parquet files."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wafervlm.archive import Found
from wafervlm.archive_files import PARQUET, import_pyarrow
from wafervlm.errors import ResourceError
from wafervlm.files import write_whole
from wafervlm.wafermap import WaferMap

if TYPE_CHECKING:
    from wafervlm.model import WaferVLM

LEFT_SECONDS = 3600.0
_SLICE = 256  # maps handed to the model at once, so that pictures of a whole part never stand in memory


def part_file(out: Path, number: int) -> Path:
    """Where the scores of part ``number`` lie in ``out``."""
    return out / f"part-{number:05d}{PARQUET}"


def write_part(path: Path, found: Sequence[Found], model: WaferVLM) -> None:
    """Answer for ``found`` and write the Parquet file ``path``. Raises what predictions raise, but for an
    error in one map, which becomes its row's, and ResourceError where the file cannot be written."""
    pyarrow = import_pyarrow()
    labels = model.task.labels
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "label", "confidence", "scores", "error")}
    for first in range(0, len(found), _SLICE):
        slice_ = found[first : first + _SLICE]
        answers = iter(model.predict_batch([each.wafer for each in slice_ if each.wafer is not None]))
        for each in slice_:
            answer = next(answers) if each.wafer is not None else None
            columns["id"].append(each.id)
            columns["label"].append(answer and answer.label)
            columns["confidence"].append(answer and answer.confidence)
            columns["scores"].append(answer and dict(answer.scores))
            columns["error"].append(each.error or None)
    types = {
        "id": pyarrow.string(),
        "label": pyarrow.string(),
        "confidence": pyarrow.float64(),
        "scores": pyarrow.struct([(label, pyarrow.float64()) for label in labels]),
        "error": pyarrow.string(),
    }
    table = pyarrow.table({name: pyarrow.array(columns[name], kind) for name, kind in types.items()})
    digest = pyarrow.array([model.digest] * len(found), pyarrow.string())
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table.add_column(4, "bundle", digest), sink, compression="zstd")
    try:
        write_whole(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written ({error.strerror or error}); see to the room and permissions there, "
            "and run the same command again: parts that are complete stay"
        ) from None


def pack(found: Sequence[Found]) -> bytes:
    """The maps of a part as one Arrow stream; ``unpack`` reads it."""
    pyarrow = import_pyarrow()
    grids = [None if each.wafer is None else each.wafer.dies for each in found]
    columns = {
        "id": ([each.id for each in found], pyarrow.string()),
        "height": ([0 if grid is None else grid.shape[0] for grid in grids], pyarrow.int32()),
        "dies": ([b"" if grid is None else grid.tobytes() for grid in grids], pyarrow.binary()),
        "error": ([each.error for each in found], pyarrow.string()),
    }
    table = pyarrow.table({name: pyarrow.array(*column) for name, column in columns.items()})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack(data: bytes) -> list[Found]:
    """The maps that ``pack`` was given; of each the id, the dies and the error."""
    pyarrow = import_pyarrow()
    with pyarrow.ipc.open_stream(data) as stream:
        columns = stream.read_all().to_pydict()
    found = []
    for name, height, dies, error in zip(*columns.values(), strict=True):
        grid = np.frombuffer(dies, np.uint8).reshape(height, -1) if dies else None
        found.append(Found(name, None if grid is None else WaferMap(grid, id=name), error))
    return found


def totals(out: Path, parts: int) -> dict[str, Any]:
    """Counts over all ``parts`` in ``out``; what killed writers left there an hour ago or more is removed,
    since others may be at work in the folder, on this machine or another."""
    pyarrow = import_pyarrow()
    labels: Counter[str] = Counter()
    errors = 0
    for number in range(parts):
        table = pyarrow.parquet.read_table(part_file(out, number), columns=["label", "error"])
        labels.update(label for label in table["label"].to_pylist() if label is not None)
        errors += len(table) - table["error"].null_count
    for left in out.glob(".*.writing"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()
    return {"labels": dict(sorted(labels.items())), "errors": errors}
