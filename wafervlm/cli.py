"""The command line. A command's module is imported when the command is called, so that help is quick."""

from __future__ import annotations

import difflib
import errno
import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from wafervlm import workshop
from wafervlm.console import say
from wafervlm.errors import ResourceError, WaferVLMError, WaferVLMWarning, WorkshopError


@dataclass(frozen=True)
class Entry:
    """Where a command is found, and the line that the list of commands shows for it."""

    module: str
    help: str

    @property
    def in_workshop(self) -> bool:
        return not self.module.startswith("wafervlm.")


COMMANDS = {
    "predict": Entry("wafervlm.commands", "Say what is wrong with wafers."),
    "describe": Entry("wafervlm.words_commands", "Describe a wafer in words, checked against its dies."),
    "score": Entry("wafervlm.score_commands", "Score an archive of wafer maps into Parquet, on Ray Data."),
    "engine": Entry("wafervlm.engine_commands", "Compile a bundle for GPUs, with TensorRT."),
    "verify": Entry(
        "wafervlm.check_commands", "Check that a bundle answers here as it did where it was made."
    ),
    "doctor": Entry(
        "wafervlm.check_commands", "Check this machine, and say what to do about what is missing."
    ),
    "run": Entry("benchmarks.commands", "Drive the whole line from one recipe, from maps to report."),
    "data": Entry("train.commands", "Datasets of wafer maps: build, clean, describe, check."),
    "train": Entry("train.commands", "Teach a model wafer maps with LoRA."),
    "merge": Entry("train.commands", "Merge an adapter into its base."),
    "calibrate": Entry("calibrate.commands", "Quantize a checkpoint with GPTQ on wafer maps."),
    "export": Entry("export.commands", "Write a bundle that a station can load."),
    "benchmark": Entry(
        "benchmarks.commands", "Judge a bundle, its words (--words), or its speed alone (--latency)."
    ),
    "report": Entry("benchmarks.cookbook.commands", "Fill a report from what the line wrote."),
}
LATENCY = Entry("wafervlm.latency_commands", "Time a bundle on this machine.")
"""What ``benchmark --latency`` is: of the station, though the rest of the command is the workshop's."""
WORDS = Entry("benchmarks.assessment.commands", "Judge what subjects say of wafers.")
"""What ``benchmark --words`` is."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else self._load(entry, cmd_name)

    def _load(self, entry: Entry, cmd_name: str) -> click.Command:
        load = workshop.load if entry.in_workshop else importlib.import_module
        for value in vars(load(entry.module)).values():
            if isinstance(value, click.Command) and value.name == cmd_name:
                return value
        raise WorkshopError(f"{entry.module} holds no command {cmd_name!r}; the checkout is incomplete")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COMMANDS)}"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        if name == "benchmark" and _asks_latency(args[1:]):
            return name, self._load(LATENCY, name), args[1:]
        if name == "benchmark" and "--words" in args[1:]:
            return name, self._load(WORDS, name), args[1:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        needs = "" if workshop.is_checkout() else " (need a checkout of the project)"
        for title, wanted in (("Station commands", False), (f"Workshop commands{needs}", True)):
            with formatter.section(title):
                entries = COMMANDS.items()
                formatter.write_dl([(name, e.help) for name, e in entries if e.in_workshop is wanted])


def _asks_latency(args: Sequence[str]) -> bool:
    """Whether ``benchmark`` is the station's: for --latency, and for help where there is no other."""
    wanted = set(args)
    return "--latency" in wanted or bool({"-h", "--help"} & wanted and not workshop.is_checkout())


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"wafervlm {workshop.version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "--verbose", is_flag=True, help="Log on stderr; show where an error came from.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def cli(verbose: bool) -> None:
    """Wafer-map classification by a small vision-language model.

    \b
    Example:
      wafervlm predict map.npy

    Exit codes: 0 ok, 1 failure, 2 usage, 3 integrity, 4 this machine lacks something, 5 a gate not passed.
    """
    if verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
        logging.getLogger("wafervlm").setLevel(logging.DEBUG)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line on ``args`` (the process's own when None) and return the exit code."""
    arguments = _verbose_first(list(sys.argv[1:] if args is None else args))
    try:
        with _warnings_said():
            code = cli.main(arguments, prog_name="wafervlm", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        say("stopped")
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        if arguments[:1] == ["-v"]:
            traceback.print_exception(error)
        say(f"Error: {known}")
        return known.exit_code if isinstance(known, WaferVLMError) else 1


def explain(error: BaseException) -> BaseException | None:
    """The error whose sentence and exit code stand for ``error``, None where it is a defect of ours."""
    if isinstance(error, WaferVLMError):
        return error
    for link in _chain(error):
        if _is_full_disk(link):
            name = getattr(link, "filename", None)
            where = f" while writing {name}" if name else ""
            return ResourceError(f"the disk is full{where}; free space and run the same command again")
    if isinstance(error, MemoryError):
        return ResourceError("memory ran out; lower the batch size, or close other programs")
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        ours = package in {"wafervlm", *workshop.FOLDERS}
        return None if ours else WorkshopError(f"{package} is not installed; {workshop.INSTALL}")
    return _of_system(error) if isinstance(error, OSError) else None


def _of_system(error: OSError) -> BaseException:
    """What the system said of a file, with the file and what to do."""
    name = error.filename2 or error.filename
    where = f"{name} cannot be read or written" if name else "a file cannot be read or written"
    what = f"{where}: {error.strerror or error}"
    if error.errno == errno.EFBIG:
        return ResourceError(f"{what}; it grew beyond what is allowed for one file (ulimit -f): raise that")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return WaferVLMError(f"{what}; name a place where you may write, or change its permissions")
    return WaferVLMError(f"{what}; check the path and the disk")


def _verbose_first(arguments: list[str]) -> list[str]:
    """``arguments`` with a -v or --verbose that stands anywhere before ``--`` put before the command."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    asked = [word for word in arguments[:end] if word in ("-v", "--verbose")]
    rest = [word for word in arguments[:end] if word not in asked]
    return ["-v"] * bool(asked) + rest + arguments[end:]


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Print a warning of ours as one line for people, without the place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *others: Any, **named: Any) -> None:
            if issubclass(category, WaferVLMWarning):
                say(f"warning: {message}")
            else:
                usual(message, category, *others, **named)

        warnings.showwarning = show
        yield


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOSPC
    # safetensors and torch.save raise errors of their own, without a number.
    return any(sign in str(error) for sign in ("No space left on device", "basic_ios::clear: iostream error"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    sys.exit(main())
