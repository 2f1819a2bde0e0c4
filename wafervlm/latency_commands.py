"""The command ``wafervlm benchmark --latency``, which needs the station alone.

Without --latency the workshop's command of that name is run; see wafervlm.cli.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wafervlm import console
from wafervlm.errors import SetupError
from wafervlm.options import (
    bundle_option,
    cache_option,
    engine_option,
    runtime_option,
    shown_runtime,
    threads_option,
)

if TYPE_CHECKING:
    from wafervlm.latency import Latency
    from wafervlm.model import WaferVLM

SECONDS_BETWEEN_NOTES = 5.0
FEWEST_BATCHES = 10


@click.command()
@click.option(
    "--latency",
    is_flag=True,
    expose_value=False,
    help="Time the bundle. Without this labelled maps judge it, which needs a checkout of the project.",
)
@bundle_option
@engine_option
@runtime_option
@cache_option
@threads_option
@click.option("--calls", type=click.IntRange(min=1), default=200, show_default=True, help="Calls timed.")
@click.option("--warmup", type=click.IntRange(min=0), default=5, show_default=True, help="Calls before them.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Time lists of so many wafers too.",
)
@console.json_option
def benchmark(
    bundle: Path | None,
    engine: Path | None,
    runtime: str | None,
    runtime_cache: Path | None,
    threads: int | None,
    calls: int,
    warmup: int,
    batch: int,
    as_json: bool,
) -> None:
    """Time how long a bundle takes for a wafer here: from a file of dies to the answer.

    Each call has a map of its own, made from the bundle's golden maps by turning, mirroring and changing some
    dies, and written to a temporary folder. With --json all figures are one line of JSON.

    \b
    Example:
      wafervlm benchmark --latency --bundle bundle/
      wafervlm benchmark --latency --bundle bundle/ --runtime openvino --threads 2 --batch 16 --json
    """
    from wafervlm.bundle import open_bundle
    from wafervlm.golden import read_golden
    from wafervlm.latency import vary
    from wafervlm.loading import load
    from wafervlm.machine import describe_machine, peak_memory_mib

    machine = describe_machine()
    opened = open_bundle(bundle)
    runs = [(1, calls), *([(batch, max(FEWEST_BATCHES, calls // batch))] if batch > 1 else [])]
    maps = vary(read_golden(opened).maps, 1 + sum(size * (warmup + count) for size, count in runs))
    started = time.perf_counter()
    with load(bundle, runtime=runtime, threads=threads, engine=engine, runtime_cache=runtime_cache) as model:
        found: dict[str, Any] = {"load_ms": 1e3 * (time.perf_counter() - started)}
        shown = {
            "bundle": f"{bundle or 'embedded'} ({model.manifest.name} {model.digest[:12]})",
            "engine": engine,
            "runtime": model.runtime,
            "threads": threads or "one for each core",
        }
        counts = {"calls": calls, "warmup": warmup, "batch": batch, "maps": len(maps)}
        console.settings({**shown, "runtime": shown_runtime(model, engine), **counts})
        with _written(maps) as paths:
            found |= _times(model, paths, warmup, runs)
    disk = opened.path if engine is None else engine
    found |= {"peak_mib": peak_memory_mib(), "disk_mib": _size_mib(disk), "gpu": _gpu(model.runtime)}
    summary = {**shown, **found, "machine": machine}
    if as_json:
        console.json_line(summary)
        return
    for line in table(summary):
        click.echo(line)


def table(summary: Mapping[str, Any]) -> list[str]:
    """The figures for people."""
    lines = [f"{'milliseconds':34}{'p50':>10}{'p90':>10}{'p99':>10}"]
    for timed in summary["latency"]:
        name = "one wafer" if timed["batch"] == 1 else f"{timed['batch']} wafers"
        for part, times in timed["ms"].items():
            row = f"{name}, {timed['calls']} calls" if part == "total" else f"  {part}"
            lines.append(f"{row:34}{times['p50']:>10.2f}{times['p90']:>10.2f}{times['p99']:>10.2f}")
    peak = summary["peak_mib"]
    memory = "" if peak is None else f", {peak:.0f} MiB of memory at the peak"
    return [
        *lines,
        f"load {summary['load_ms']:.0f} ms, first answer {summary['first_answer_ms']:.1f} ms{memory}",
        f"{summary['disk_mib']:.1f} MiB on disk, {summary['runtime']}, threads: {summary['threads']}",
        ", ".join(filter(None, (summary["gpu"], summary["machine"]["cpu"]))),
    ]


def _times(
    model: WaferVLM, paths: Sequence[Path], warmup: int, runs: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """The first answer, then each of ``runs``, which is the length of a list and how many are timed. No file
    is read twice."""
    from wafervlm.latency import measure_files

    started = time.perf_counter()
    model.predict(paths[0])
    first = 1e3 * (time.perf_counter() - started)
    unread, timed = iter(paths[1:]), []
    for size, count in runs:
        chosen = list(islice(unread, size * (warmup + count)))
        figures = measure_files(model, chosen, batch=size, warmup=warmup, report=_notes())
        timed.append(_figures(size, figures))
    return {"first_answer_ms": first, "latency": timed}


def _figures(batch: int, figures: Mapping[str, Latency]) -> dict[str, Any]:
    return {
        "batch": batch,
        "calls": figures["total"].calls,
        "ms": {part: latency.to_dict() for part, latency in figures.items()},
        "wafers_per_second": 1e3 * batch / figures["total"].mean,
    }


def _notes() -> Callable[[int, int], None]:
    """Say every few seconds how far it is."""
    started = noted = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal noted
        now = time.monotonic()
        if now - noted >= SECONDS_BETWEEN_NOTES and done < total:
            noted = now
            console.say(f"{done}/{total} calls, {(now - started) / done * (total - done):.0f} s left")

    return report


@contextmanager
def _written(maps: Sequence[Any]) -> Iterator[list[Path]]:
    """The maps as files of die grids, which are removed at the end."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="wafervlm-") as folder:
        paths = [Path(folder, f"{number}.npy") for number in range(len(maps))]
        for path, wafer in zip(paths, maps, strict=True):
            np.save(path, wafer.dies)
        yield paths


def _size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


def _gpu(runtime: str) -> str | None:
    if not runtime.startswith(("tensorrt", "onnx-cuda")):
        return None
    from wafervlm.runtimes.cuda import find_gpu

    try:
        return find_gpu().name
    except SetupError as error:
        # ONNX Runtime needs no cuda-python to compute on the GPU, and the figures are there.
        console.say(f"the GPU is not named: {error}")
        return None
