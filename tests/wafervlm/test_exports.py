"""What is public: a name that comes or goes shows here, and each is documented."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import wafervlm
from wafervlm import errors

PUBLIC = [
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DatasetError",
    "Description",
    "DeviceLost",
    "DigestError",
    "FileFormatError",
    "FileSetError",
    "GateError",
    "ImageError",
    "InputError",
    "IntegrityError",
    "LeakError",
    "LockError",
    "ManifestError",
    "MissingDependencyError",
    "Prediction",
    "PredictionTimeout",
    "ProviderError",
    "ResourceError",
    "SchemaVersionError",
    "SetupError",
    "Task",
    "TaskError",
    "UsageError",
    "VerificationError",
    "WaferMap",
    "WaferMapError",
    "WaferVLM",
    "WaferVLMError",
    "WaferVLMWarning",
    "WorkshopError",
    "load",
]

# "|   +-- LeakError            a lot ...": the depth, the name, and the exit code where one stands.
BRANCH = re.compile(r"^((?:\|   |    )*)(?:\+-- )(\w+)(?: +(\d) )?")


def test_public_names() -> None:
    assert wafervlm.__all__ == sorted(wafervlm.__all__) == PUBLIC


def test_star_import_gives_them_all() -> None:
    space: dict[str, object] = {}
    exec("from wafervlm import *", space)  # noqa: S102
    assert set(PUBLIC) <= set(space)


def test_every_public_thing_is_documented() -> None:
    bare = []
    for name in PUBLIC:
        thing = getattr(wafervlm, name)
        members = vars(thing).items() if inspect.isclass(thing) else ()
        parts = {f"{name}.{key}": value for key, value in members if not key.startswith("_")}
        for where, part in {name: thing, **parts}.items():
            documented = callable(part) or isinstance(part, (property, classmethod, staticmethod))
            if documented and not inspect.getdoc(part):
                bare.append(where)
    assert not bare


def test_the_tree_of_errors_is_as_drawn() -> None:
    """Parents and exit codes in the docstring of errors.py are those of the classes."""
    drawn: dict[str, tuple[str, int]] = {}
    above = {-1: ("WaferVLMError", 1)}
    for line in (errors.__doc__ or "").splitlines():
        found = BRANCH.match(line.removeprefix("    "))
        if found:
            depth, name = len(found[1]) // 4, found[2]
            parent, inherited = above[depth - 1]
            above[depth] = name, int(found[3] or inherited)
            drawn[name] = parent, above[depth][1]
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    real = {
        c.__name__: (c.__bases__[0].__name__, c.exit_code)
        for c in classes
        if issubclass(c, errors.WaferVLMError) and c is not errors.WaferVLMError
    }
    assert drawn == real


def test_a_users_program_type_checks(tmp_path: Path) -> None:
    """The package is typed: mypy sees what the three lines of the README give back."""
    program = tmp_path / "program.py"
    program.write_text(
        "import wafervlm\n"
        "with wafervlm.load('bundle/', threads=1) as model:\n"
        "    answer = model.predict([[1, 2], [2, 1]], timeout=1.0)\n"
        "    reveal_type(answer.label)\n"
        "    wrong: int = answer.label\n"
    )
    root = Path(wafervlm.__file__).parents[1]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file",
            "",
            "--cache-dir",
            str(tmp_path),
            program,
        ],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = [line.partition("program.py:")[2] for line in done.stdout.splitlines() if "program.py:" in line]
    assert len(found) == 2, done.stdout
    assert 'Revealed type is "str"' in found[0] or "builtins.str" in found[0]
    assert "Incompatible types in assignment" in found[1]
    assert (root / "wafervlm" / "py.typed").is_file()
