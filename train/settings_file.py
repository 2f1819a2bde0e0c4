"""Settings classes, nested frozen dataclasses, read from TOML files.

The text under a field is its help. A key that is not known is refused with the nearest known one.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from wafervlm.errors import ConfigError

T = TypeVar("T")


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Raise a ConfigError that says what the setting ``key`` is and what it must be, unless ``holds``."""
    if not holds:
        raise ConfigError(f"{key} is {value!r}; it must be {rule}")


def read_table(path: Path) -> dict[str, Any]:
    """The tables of the TOML file ``path``. Raises ConfigError where it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the settings file {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the settings file {path} is not valid TOML: {error}") from None


def settings_of(
    cls: type[T], path: Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
) -> T:
    """Read the TOML file ``path`` into any settings class ``cls`` of nested dataclasses; ``overrides``
    (``key=value`` with a TOML value) and then ``values`` (dotted key to value) win over what it says.

    Raises ConfigError for an unknown key, with the nearest known one, a wrong type and a wrong value.
    """
    over = {**dict(parse_override(text) for text in overrides), **(values or {})}
    flat = {**dict(flatten(read_table(path))), **over}
    known = [key for key, _, _ in leaves(cls)]
    for key in flat:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {path}; {nearest(key, sorted(known))}")
    return build(cls, flat)


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted key, default, help) of every setting of a settings class, in order."""
    texts = field_help(cls)
    for f, kind in _fields(cls):
        if dataclasses.is_dataclass(kind):
            yield from leaves(typing.cast(type, kind), f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f.default, texts.get(f.name, "")


@functools.cache
def field_help(cls: type) -> dict[str, str]:
    """The text that stands under each field of a dataclass, by field name, on one line."""
    (body,) = (
        node.body
        for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        if isinstance(node, ast.ClassDef)
    )
    return {
        target.target.id: " ".join(text.value.value.split())
        for target, text in itertools.pairwise(body)
        if isinstance(target, ast.AnnAssign)
        and isinstance(target.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(f, hints[f.name]) for f in dataclasses.fields(cls)]


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of nested tables, in order."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of ``key=value`` with a TOML value, or a bare word. Raises ConfigError without a "="."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not key=value, as in train.batch=16")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is text, as people write it on a command line.
        return key.strip(), value.strip()


def nearest(key: str, known: list[str]) -> str:
    """What to say of a ``key`` that is not known: the nearest of those that are, or all of them."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        tails = {name.rpartition(".")[2]: name for name in known}
        close = difflib.get_close_matches(key.rpartition(".")[2], list(tails), n=1, cutoff=0.6)
        near = [tails[name] for name in close]
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def build(cls: type[T], flat: Mapping[str, Any], prefix: str = "") -> T:
    """The settings class ``cls`` from dotted keys; what they do not hold has its default. Raises ConfigError
    for a wrong type or value."""
    values: dict[str, Any] = {}
    for f, kind in _fields(cls):
        key = prefix + f.name
        if dataclasses.is_dataclass(kind):
            values[f.name] = build(typing.cast(type, kind), flat, key + ".")
        elif key in flat:
            values[f.name] = _converted(key, flat[key], kind)
    return cls(**values)


def _converted(key: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        # TOML has no null: a setting that may be None is left out for it.
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{key} is {value!r}; it must be one of {', '.join(choices)}{hint}")
        return value
    if kind is float and type(value) is int:
        return float(value)
    if kind is float and type(value) is float and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}; it must be a finite number")
    if type(value) is not kind:
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ConfigError(f"{key} is {value!r}; it must be {wanted}")
    return value
