"""The command line: what it lists, what it guesses, and what becomes of each kind of error."""

from __future__ import annotations

import errno
import warnings
from typing import Any

import click
import pytest
from safetensors import SafetensorError

from wafervlm import cli, errors, workshop

Capture = pytest.CaptureFixture[str]


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_help_lists_every_command_and_the_exit_codes(capsys: Capture) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    assert "3 integrity" in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_commands_help_has_an_example_and_help_for_each_option(name: str, capsys: Capture) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command is not None
    for words, leaf in _leaves(command, name):
        assert run(*words.split(), "--help") == 0
        out = capsys.readouterr().out
        assert f"wafervlm {words}" in out.partition("Example:")[2], words
        bare = [option.name for option in leaf.params if isinstance(option, click.Option) and not option.help]
        assert not bare, words


def _leaves(command: click.Command, words: str) -> list[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        return [(words, command)]
    return [leaf for name, part in command.commands.items() for leaf in _leaves(part, f"{words} {name}")]


@pytest.mark.parametrize(
    "typed, meant",
    [("trian", "train"), ("predictt", "predict"), ("calibrat", "calibrate"), ("Doctor", "doctor")],
)
def test_a_mistyped_command_is_guessed(typed: str, meant: str, capsys: Capture) -> None:
    assert run(typed) == 2
    assert f"did you mean '{meant}'?" in capsys.readouterr().err


def test_an_unknown_command_lists_the_known_ones(capsys: Capture) -> None:
    assert run("xyzzy") == 2
    assert ", ".join(cli.COMMANDS) in capsys.readouterr().err


def test_version(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"wafervlm {workshop.version()}\n"
    assert workshop.version()[0].isdigit()


EXITS = {
    "one sentence": (errors.WaferMapError("one sentence"), 1),
    "odd setting": (errors.ConfigError("odd setting"), 2),
    "changed file": (errors.DigestError("changed file"), 3),
    "no provider": (errors.ProviderError("no provider"), 4),
    "not reached": (errors.GateError("not reached"), 5),
    "memory ran out": (MemoryError(), 4),
    "disk is full while writing out.bin": (OSError(errno.ENOSPC, "No space left on device", "out.bin"), 4),
    "there cannot be read or written: Permission denied; name a place where you may write": (
        PermissionError(errno.EACCES, "Permission denied", "there"),
        1,
    ),
    "big cannot be read or written: File too large; it grew": (
        OSError(errno.EFBIG, "File too large", "big"),
        4,
    ),
    "torch is not installed": (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 4),
}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command that raises what it is given."""

    def make(error: BaseException) -> None:
        @click.command("predict")
        def command() -> None:
            raise error

        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: command)

    return make


@pytest.mark.parametrize("sentence", EXITS)
def test_an_error_is_one_line_and_an_exit_code(sentence: str, failing: Any, capsys: Capture) -> None:
    error, code = EXITS[sentence]
    failing(error)
    assert run("predict") == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Error: ")
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1


def _caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    "error",
    [
        _caused(OSError("could not save the picture"), by=OSError(errno.ENOSPC, "No space left on device")),
        # As safetensors 0.8 and torch 2.13 raise them on a full disk.
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        _caused(
            RuntimeError("unexpected pos 576 vs 534"), by=RuntimeError("basic_ios::clear: iostream error")
        ),
    ],
    ids=["wrapped", "safetensors", "torch"],
)
def test_a_full_disk_is_told_however_a_library_says_it(
    error: BaseException, failing: Any, capsys: Capture
) -> None:
    failing(error)
    assert run("predict") == 4
    assert capsys.readouterr().err.startswith("Error: the disk is full; free space")


@pytest.mark.parametrize("words", [("-v", "predict"), ("predict", "-v"), ("predict", "--verbose")])
def test_verbose_shows_where_an_error_came_from(
    words: tuple[str, ...], failing: Any, capsys: Capture
) -> None:
    failing(errors.GateError("not reached"))
    assert run(*words) == 5
    assert "Traceback" in capsys.readouterr().err
    assert run("predict", "--", "-v") == 2, "after -- it is an argument"


def test_a_warning_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    @click.command("predict")
    def command() -> None:
        for category in (errors.WaferVLMWarning, DeprecationWarning):
            warnings.warn("have a look", category, stacklevel=1)

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: command)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        assert run("predict") == 0
    assert capsys.readouterr().err == "warning: have a look\n"
    assert [each.category for each in others] == [DeprecationWarning], "those of others stay as they are"


def test_a_defect_of_ours_is_not_hidden(failing: Any) -> None:
    failing(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        run("predict")
