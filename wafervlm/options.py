"""The options that several commands of the station have, and what --bins says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wafervlm.errors import UsageError

if TYPE_CHECKING:
    from wafervlm.model import WaferVLM

_WORDS = {"none": 0, "no die": 0, "pass": 1, "fail": 2, "0": 0, "1": 1, "2": 2}

bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle folder. [default: the embedded nano bundle]",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads for one prediction, at most the cores that may be used. [default: one for each core]",
)
engine_option = click.option(
    "--engine",
    type=click.Path(path_type=Path),
    help="Engine folder of that bundle, from: wafervlm engine.",
)
runtime_option = click.option(
    "--runtime",
    type=click.Choice(["auto", "onnx", "onnx-cuda", "openvino", "tensorrt"]),
    help="What executes the graph; auto: tensorrt where --engine can run here, else onnx-cuda where ONNX "
    "Runtime has a GPU, else onnx, and openvino only where there is no ONNX Runtime.  "
    "[default: tensorrt with --engine, else onnx]",
)
cache_option = click.option(
    "--runtime-cache",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where tensorrt_rtx keeps the kernels it compiled for this GPU; guard it like a program.",
)
bins_option = click.option(
    "--bins", help="What codes mean, as in .=0,1=pass,X=fail, or a JSON file with such a table."
)
foreign_option = click.option(
    "--foreign", is_flag=True, help="Take images in other colours too; their answers are marked."
)


def read_bins(text: str) -> dict[str, int]:
    """The table of bin codes in ``text``: ``.=0,1=pass,X=fail``, or the name of a JSON file with such a
    table. Values are 0, 1 and 2, or none, pass and fail. Raises UsageError."""
    if "=" in text and not Path(text).is_file():
        pairs = [pair.rpartition("=")[::2] for pair in text.split(",")]
        table: dict[str, object] = dict(pairs)
        if len(table) < len(pairs):
            raise UsageError(f"--bins {text} names a code twice")
    else:
        table = _bins_file(Path(text))
    meant = {code: _WORDS.get(str(value).strip().lower()) for code, value in table.items()}
    bins = {code: value for code, value in meant.items() if value is not None}
    if len(bins) < len(table):
        wrong = next(code for code in table if code not in bins)
        raise UsageError(
            f"--bins gives {wrong!r} the meaning {table[wrong]!r}; it must be 0 (none), 1 (pass) or 2 (fail)"
        )
    return bins


def shown_bins(bins: Mapping[str, int] | None) -> str | None:
    """``bins`` as settings show it."""
    return None if bins is None else ", ".join(f"{code}={die}" for code, die in bins.items())


def shown_runtime(model: WaferVLM, engine: Path | None) -> str:
    """What executes the graph, as settings show it: where a named engine is not used a warning said why."""
    said = model.runtime
    return said if engine is None or said.startswith("tensorrt") else said.partition(" (")[0]


def _bins_file(path: Path) -> dict[str, object]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--bins {path} is neither a table such as .=0,1=1,X=2 nor a JSON file: {error}"
        ) from None
    if not isinstance(table, dict) or not table:
        raise UsageError(f'--bins {path} must hold one JSON object, as in {{"P": 1, "F": 2}}')
    return table
