"""The command ``wafervlm score``."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from wafervlm import console
from wafervlm.options import bundle_option, engine_option, read_bins, shown_bins


@click.command()
@click.argument("archive", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the Parquet files; the same one goes on after an interruption.",
)
@bundle_option
@engine_option
@click.option(
    "--runtime",
    type=click.Choice(["onnx", "onnx-cuda", "openvino", "tensorrt"]),
    help="What executes the graph in each actor; with onnx-cuda and tensorrt each has a GPU of its own.  "
    "[default: tensorrt with --engine, else onnx]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where actors compute; with cuda each has a GPU of its own.",
)
@click.option(
    "--actors",
    type=click.IntRange(min=1),
    help="Models at work at once.  [default: one for each GPU, or for --threads cores]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of each actor on a CPU.",
)
@click.option(
    "--part-maps",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Maps in one Parquet file: what an interruption can cost each actor.",
)
@click.option("--bins", help="What codes mean, as in .=0,1=pass,X=fail, or a JSON file with such a table.")
@click.option("--address", help="Address of a running Ray, as auto.  [default: one started on this machine]")
@console.json_option
def score(
    archive: tuple[Path, ...],
    out: Path,
    bundle: Path | None,
    engine: Path | None,
    runtime: str | None,
    device: str,
    actors: int | None,
    threads: int,
    part_maps: int,
    bins: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Score an ARCHIVE of any number of wafer maps into Parquet files, on Ray Data.

    ARCHIVE is files and folders: map files as for predict, .npz archives (WM-811K, MixedWM38) and Parquet
    files with a column dies. A row of the result has id, label, confidence, scores, bundle and error; a map
    that cannot be read has an error and ends nothing. Interrupt or kill the command and run it again: parts
    that are complete are left. Several machines need a common disk. Needs: pip install 'wafervlm[archive]'

    \b
    Example:
      wafervlm score archive/ -o scores/ --bundle bundle/
      wafervlm score wm811k.npz lots.parquet -o scores/ --device cuda
      wafervlm score archive/ -o scores/ --bundle bundle/ --engine engine/
    """
    from wafervlm.score import score_archive
    from wafervlm.score_config import ScoreConfig

    config = ScoreConfig(
        bundle=bundle,
        device=device,
        actors=actors,
        threads=threads,
        part_maps=part_maps,
        bins=None if bins is None else read_bins(bins),
        address=address,
        runtime=runtime,
        engine=engine,
    )
    each = "GPU" if config.on_gpu else "core" if threads == 1 else f"{threads} cores"
    console.settings(
        {
            "archive": [str(path) for path in archive],
            "out": out,
            "bundle": bundle or "embedded",
            "engine": engine,
            "runtime": config.name,
            "device": "cuda" if config.on_gpu else device,
            "actors": actors or f"one for each {each}",
            "threads": threads,
            "part_maps": part_maps,
            "bins": shown_bins(config.bins),
            "ray": address or "started here",
        }
    )
    try:
        summary = score_archive(archive, out, config)
    except KeyboardInterrupt:
        # Nothing is left to be interrupted but Python's own end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise
    console.result(summary, as_json)
    console.say(f"read it with: pandas.read_parquet({str(out)!r})")
