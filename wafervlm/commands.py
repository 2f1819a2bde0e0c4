"""The commands of the station: predict, verify, doctor."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wafervlm import console
from wafervlm.errors import ClosedError, IntegrityError, SetupError, UsageError, WaferVLMError

if TYPE_CHECKING:
    from wafervlm.model import WaferVLM
    from wafervlm.prediction import Prediction

SECONDS_BETWEEN_NOTES = 5.0

_WORDS = {"none": 0, "no die": 0, "pass": 1, "fail": 2, "0": 0, "1": 1, "2": 2}

bundle_option = click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Bundle folder. [default: the embedded nano bundle]",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads for one prediction. [default: one for each core]",
)
engine_option = click.option(
    "--engine",
    type=click.Path(path_type=Path),
    help="Engine folder of that bundle, from: wafervlm engine.",
)
runtime_option = click.option(
    "--runtime",
    type=click.Choice(["auto", "onnx", "onnx-cuda", "openvino", "tensorrt"]),
    help="What executes the graph.  [default: tensorrt with --engine, else onnx]",
)
cache_option = click.option(
    "--runtime-cache",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where tensorrt_rtx keeps the kernels it compiled for this GPU; guard it like a program.",
)


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@bundle_option
@engine_option
@runtime_option
@cache_option
@threads_option
@click.option("--foreign", is_flag=True, help="Take images in other colours too; their answers are marked.")
@click.option("--bins", help="What codes mean, as in .=0,1=pass,X=fail, or a JSON file with such a table.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the answer (one wafer) to this PNG file.",
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

    files = find_files(paths)
    if plot is not None and len(files) != 1:
        raise UsageError(f"--plot draws one wafer, and {len(files)} were named; name one file")
    codes = None if bins is None else read_bins(bins)
    with load(bundle, runtime=runtime, threads=threads, engine=engine, runtime_cache=runtime_cache) as model:
        console.settings(
            {
                "bundle": f"{bundle or 'embedded'} ({model.manifest.name} {model.digest[:12]})",
                "engine": engine,
                "runtime": model.runtime,
                "runtime_cache": runtime_cache,
                "threads": threads or "one for each core",
                "timeout": timeout,
                "foreign": foreign,
                "bins": codes,
            }
        )
        answers = _answers(model, files, timeout=timeout, foreign=foreign, bins=codes)
        done = _report(answers, len(files), as_json)
    if plot is not None and done:
        done[0].plot().save(plot, "PNG")
        console.say(f"drawn to {plot}")
    elif len(files) == 1 and done:
        console.next_command("wafervlm", "predict", files[0], *_named(bundle, engine), "--plot", "answer.png")
    if len(done) < len(files):
        raise click.exceptions.Exit(1)


@click.command()
@bundle_option
@engine_option
@click.option(
    "--runtime",
    type=click.Choice(["onnx", "onnx-cuda", "openvino"]),
    help="What executes the graph, without --engine.  [default: onnx]",
)
@cache_option
@threads_option
@console.json_option
def verify(
    bundle: Path | None,
    engine: Path | None,
    runtime: str | None,
    runtime_cache: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check that a bundle answers here as it did where it was made.

    Compares every file's digest, then runs the golden maps that the bundle carries and compares their
    scores with the reference, at exact accuracy where the graph has such a form, and as deployed. With
    --engine they run on that engine and this GPU, which is what an engine needs before its first use. Exit
    code 3 where they do not come out.

    \b
    Example:
      wafervlm verify --bundle bundle/
      wafervlm verify --bundle bundle/ --runtime openvino
      wafervlm verify --bundle bundle/ --engine engine/
    """
    from wafervlm.verification import verify as run

    named = {"runtime": runtime} if engine is None else {"engine": engine, "runtime_cache": runtime_cache}
    console.settings({"bundle": bundle or "embedded", **named, "threads": threads or "one for each core"})
    report = run(bundle, runtime=runtime, threads=threads, engine=engine, runtime_cache=runtime_cache)
    console.result(report, as_json)
    if engine is not None and not report["recorded"]:
        console.say(f"{engine} cannot be written: the golden maps run at each start instead")
    chosen = ["--runtime", runtime] if runtime else []
    console.next_command("wafervlm", "predict", "map.npy", *_named(bundle, engine), *chosen)


@click.command()
@console.json_option
def doctor(as_json: bool) -> None:
    """Check this machine, and say what to do about what is missing.

    Exit code 4 where something that prediction needs is missing.

    \b
    Example:
      wafervlm doctor
    """
    from wafervlm.doctor import State, examine

    checks = examine()
    healthy = all(check.state is not State.MISSING for check in checks)
    if as_json:
        console.json_line({"healthy": healthy, "checks": [check.to_dict() for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = click.style(f"{check.state.value:<7}", fg=check.state.colour)
            advice = f"; {check.advice}" if check.advice else ""
            click.echo(f"{mark}  {check.name:<{width}}  {check.found}{advice}")
    if not healthy:
        raise click.exceptions.Exit(SetupError.exit_code)
    console.next_command("wafervlm", "verify")


def _named(bundle: Path | None, engine: Path | None) -> list[object]:
    return [*(("--bundle", bundle) if bundle else ()), *(("--engine", engine) if engine else ())]


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
        console.say(f"Error: {where}{answer}")
        if as_json:
            console.json_line({"path": path, "error": str(answer)})
    elif as_json:
        console.json_line({"path": path, **answer.to_dict()})
    else:
        outside = "" if answer.locked else "  outside the lock"
        total = answer.timing_ms["total"]
        click.echo(f"{path}  {answer.label}  {answer.confidence:.3f}  {total:.1f} ms{outside}")
