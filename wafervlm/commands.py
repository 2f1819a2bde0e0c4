"""The command ``wafervlm predict``."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wafervlm import console
from wafervlm.errors import ClosedError, IntegrityError, SetupError, UsageError, WaferVLMError
from wafervlm.options import (
    bins_option,
    bundle_option,
    cache_option,
    engine_option,
    foreign_option,
    read_bins,
    runtime_option,
    shown_bins,
    shown_runtime,
    threads_option,
)

if TYPE_CHECKING:
    from wafervlm.model import WaferVLM
    from wafervlm.prediction import Prediction

log = logging.getLogger(__name__)

SECONDS_BETWEEN_NOTES = 5.0


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@bundle_option
@engine_option
@runtime_option
@cache_option
@threads_option
@foreign_option
@bins_option
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the answer (one wafer) to this PNG file; one that is there already is replaced.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds allowed for each wafer."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each wafer.")
def predict(
    paths: tuple[Path, ...],
    bundle: Path | None,
    engine: Path | None,
    runtime: str | None,
    runtime_cache: Path | None,
    threads: int | None,
    foreign: bool,
    bins: str | None,
    plot: Path | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Say what is wrong with wafers.

    Takes files (.npy, .npz, .csv, .tsv, .txt, .asc, .png, .bmp) and folders of them. Dies are 0 no die,
    1 pass, 2 fail; --bins maps other codes. A file that cannot be read is reported and the rest go on;
    the exit code is then 1.

    \b
    Example:
      wafervlm predict map.npy
      wafervlm predict maps/ --json > answers.jsonl
      wafervlm predict grid.csv --bins .=0,P=1,F=2 --plot answer.png
      wafervlm predict map.npy --bundle bundle/ --engine engine/
    """
    from wafervlm.loading import load
    from wafervlm.picture_file import check_picture_file, save_picture

    files = find_files(paths)
    if plot is not None and len(files) != 1:
        raise UsageError(f"--plot draws one wafer, and {len(files)} were named; name one file")
    if plot is not None:
        check_picture_file(plot, files)
    codes = None if bins is None else read_bins(bins)
    with load(bundle, runtime=runtime, threads=threads, engine=engine, runtime_cache=runtime_cache) as model:
        console.settings(
            {
                "bundle": f"{bundle or 'embedded'} ({model.manifest.name} {model.digest[:12]})",
                "engine": engine,
                "runtime": shown_runtime(model, engine),
                "runtime_cache": runtime_cache,
                "threads": threads or "one for each core",
                "timeout": timeout,
                "foreign": foreign,
                "bins": shown_bins(codes),
            }
        )
        answers = _answers(model, files, timeout=timeout, foreign=foreign, bins=codes)
        done = _report(answers, len(files), as_json)
    if plot is not None and done:
        save_picture(done[0].plot(), plot)
        console.say(f"drawn to {plot}")
    elif len(files) == 1 and done:
        named = console.named(bundle=bundle, engine=engine)
        console.next_command("wafervlm", "predict", files[0], *named, "--plot", "answer.png")
    if len(done) < len(files):
        raise click.exceptions.Exit(1)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """``paths``, with each folder replaced by the wafer files beneath it, sorted. Raises UsageError."""
    from wafervlm.readers import ARRAY_SUFFIXES, GRID_SUFFIXES, IMAGE_SUFFIXES

    known = (*ARRAY_SUFFIXES, *GRID_SUFFIXES, *IMAGE_SUFFIXES)
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in known and p.is_file())
        if not found:
            raise UsageError(f"folder {path} holds no file named {', '.join(known)}")
        files += found
    return files


def _answers(
    model: WaferVLM,
    files: Sequence[Path],
    *,
    timeout: float | None,
    foreign: bool,
    bins: dict[str, int] | None,
) -> Iterator[tuple[Path, Prediction | WaferVLMError]]:
    for path in files:
        try:
            yield path, model.predict(path, timeout=timeout, foreign=foreign, bins=bins)
        except (SetupError, IntegrityError, ClosedError, UsageError):
            raise  # no other file would fare better
        except WaferVLMError as error:
            yield path, error


def _report(
    answers: Iterator[tuple[Path, Prediction | WaferVLMError]], total: int, as_json: bool
) -> list[Prediction]:
    """Print each answer as it comes; return those that there are."""
    done: list[Prediction] = []
    started = noted = time.monotonic()
    for count, (path, answer) in enumerate(answers, 1):
        _print_answer(path, answer, as_json)
        if not isinstance(answer, WaferVLMError):
            done.append(answer)
        now = time.monotonic()
        # In a terminal the answers themselves show how far it is.
        if now - noted >= SECONDS_BETWEEN_NOTES and not sys.stdout.isatty() and count < total:
            noted, left = now, (now - started) / count * (total - count)
            console.say(f"{count}/{total} wafers, {left:.0f} s left")
    if total > 1:
        counts = ", ".join(
            f"{number} {label}" for label, number in Counter(p.label for p in done).most_common()
        )
        failed = f"; {total - len(done)} could not be read" if len(done) < total else ""
        console.say(f"{len(done)} of {total} wafers in {time.monotonic() - started:.1f} s: {counts}{failed}")
    return done


def _print_answer(path: Path, answer: Prediction | WaferVLMError, as_json: bool) -> None:
    if isinstance(answer, WaferVLMError):
        # A message that names the file needs no second name before it.
        where = "" if str(path) in str(answer) else f"{path}: "
        log.debug("%s", path, exc_info=answer)
        if as_json:
            console.json_line({"path": path, "error": str(answer)})
        else:
            console.say(f"Error: {where}{answer}")
    elif as_json:
        console.json_line({"path": path, **answer.to_dict()})
    else:
        outside = "" if answer.locked else "  outside the lock"
        total = answer.timing_ms["total"]
        click.echo(f"{path}  {answer.label}  {answer.confidence:.3f}  {total:.1f} ms{outside}")
