"""What the commands say and where: results on stdout, everything for people on stderr."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import click

HELP = {"help_option_names": ["-h", "--help"]}
"""Context settings of a command that is started by itself, with ``python -m``."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
"""Decorator that adds ``--json`` to a command, as its argument ``as_json``."""


def say(text: str) -> None:
    """Print a line for people."""
    click.echo(text, err=True)


def settings(values: Mapping[str, object]) -> None:
    """Print the settings that are in effect, one per line; what is nested gets dotted names."""
    _table("settings", values, err=True)


def result(values: Mapping[str, Any], as_json: bool = False) -> None:
    """Print what came out, to stdout: lines for people, or one line of JSON."""
    if as_json:
        json_line(values)
    else:
        _table("", values, err=False)


def json_line(values: Mapping[str, Any]) -> None:
    """Print ``values`` to stdout as one line of JSON; numpy's numbers and arrays become plain ones."""
    click.echo(json.dumps(values, default=_plain, ensure_ascii=False))


def command(*words: object) -> str:
    """``words``, the program first, as a line that can be pasted into a shell of this system."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def next_command(*words: object) -> None:
    """Name the command that usually follows; ``words`` are as in ``command``."""
    say(f"next: {command(*words)}")


def named(**options: object) -> list[object]:
    """The words that give a command those of ``options`` that are not None, as in ``--bundle bundle/``."""
    given = {name: value for name, value in options.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def _table(title: str, values: Mapping[str, object], err: bool) -> None:
    rows = list(_flat(values))
    if title:
        click.echo(title, err=err)
    width = max((len(name) for name, _ in rows), default=0)
    indent = "  " if title else ""
    for name, value in rows:
        click.echo(f"{indent}{name:<{width}}  {_shown(value)}", err=err)


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_shown(item) for item in value) or "-"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    # numpy's scalars and arrays, recognised without importing numpy.
    return value.tolist() if hasattr(value, "tolist") else str(value)
