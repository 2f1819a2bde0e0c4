"""Artefact folders: written beside their final name, renamed whole, with their provenance.

A stage's output either stands complete under its name or not at all. ``provenance.json`` says from
which inputs, by digest, with which settings, versions and seed it was made, and with what parity.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from wafervlm.errors import ManifestError, ResourceError, UsageError
from wafervlm.files import check_writable, flush_tree, open_to_others, replace_folder, write_whole

PROVENANCE, CLAIM = "provenance.json", "claim.json"
_VERSIONS_OF = ("numpy", "torch", "transformers", "peft", "trl", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Provenance:
    """Where an artefact comes from: the ``stage`` that wrote it, its ``inputs`` (name to digest), the
    effective ``settings``, the ``seed`` and the ``parity`` figures measured on it."""

    stage: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def writing(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder beside ``out``; when the block ends well it is synced and renamed to ``out``.

    On any error the new folder is removed and ``out`` stays as it was. Raises UsageError where ``out``
    exists and ``overwrite`` is False, ResourceError where the disk is full.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; remove it or choose another output folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.parent / f".{out.name}.{os.getpid()}.writing"
    _sweep(out)
    work.mkdir()
    try:
        yield work
        open_to_others(work)
        flush_tree(work)
        replace_folder(work, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceError(f"the disk is full while writing {out}; free space and run again") from error
        if error.errno == errno.EFBIG:
            raise ResourceError(
                f"a file of {out} grew beyond what this shell allows for a file (ulimit -f): raise that"
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write provenance.json into ``folder``, with the versions in use and the time."""
    record = {
        **asdict(provenance),
        "versions": {"python": platform.python_version(), **_versions()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (folder / PROVENANCE).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read provenance.json of ``folder``. Raises ManifestError where it is missing or not JSON."""
    try:
        record = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{folder} has no readable {PROVENANCE}: {error}") from None
    if not isinstance(record, dict):
        raise ManifestError(f"{folder / PROVENANCE} must hold one JSON object")
    return record


def is_complete(out: Path, provenance: Provenance) -> bool:
    """Whether ``out`` stands complete and was made by the same stage from the same inputs and settings."""
    if not (out / PROVENANCE).is_file():
        return False
    wanted = json.loads(json.dumps(asdict(provenance), default=str))
    found = read_provenance(out)
    return all(found.get(key) == wanted[key] for key in ("stage", "inputs", "settings", "seed"))


def require_free(out: Path, wanted: Provenance) -> None:
    """Refuse, before any work, an ``out`` that exists, as ``refuse_other`` does, or that cannot be written.
    Raises UsageError."""
    if out.exists():
        refuse_other(out, wanted)
    check_writable(out)


def refuse_other(out: Path, wanted: Provenance) -> None:
    """Refuse to write over ``out``, which exists and is not the ``wanted`` artefact. Raises UsageError that
    says what it is: another stage's or nobody's, or made from other inputs or settings, and which."""
    record = read_provenance(out) if (out / PROVENANCE).is_file() else {}
    if record.get("stage") != wanted.stage:
        raise UsageError(f"{out} exists and was not written by this command; choose another folder")
    raise UsageError(
        f"{out} exists and was made from other inputs or settings ({', '.join(changes(record, wanted))}); "
        "remove it or choose another folder"
    )


def changes(record: Mapping[str, Any], wanted: Provenance) -> list[str]:
    """Names of the inputs and settings in which ``record``, a read provenance.json, is not as ``wanted``."""
    new = json.loads(json.dumps(asdict(wanted), default=str))
    found = []
    for part in ("inputs", "settings"):
        old = record.get(part) or {}
        found += [name for name in {**old, **new[part]} if old.get(name) != new[part].get(name)]
    return found + ["seed"] * (record.get("seed") != new["seed"])


def claim(partial: Path, provenance: Provenance, *, begun: bool) -> None:
    """Make ``partial`` the work folder of exactly what ``provenance`` describes. Raises UsageError where it
    was ``begun`` otherwise, saying what differs."""
    wanted = json.loads(
        json.dumps({"inputs": dict(provenance.inputs), "settings": dict(provenance.settings)})
    )
    path = partial / CLAIM
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else wanted
    if found != wanted and begun:
        raise UsageError(
            f"{partial} holds an unfinished training that was begun otherwise "
            f"({_difference(found, wanted)}); remove the folder to begin anew, or choose another output"
        )
    write_whole(path, json.dumps(wanted, indent=1).encode())


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    changed = [name for name, digest in wanted["inputs"].items() if found["inputs"].get(name) != digest]
    settings = {**found["settings"], **wanted["settings"]}
    changes = [(key, found["settings"].get(key), wanted["settings"].get(key)) for key in settings]
    told = [f"{key} was {old!r} and is {new!r}" for key, old, new in changes if old != new]
    return ", ".join([*(f"the {name} changed" for name in changed), *told])


def folder_digest(path: Path) -> str:
    """sha256, 64 hex digits, of a file, or over the sorted relative names and contents of a folder."""
    if path.is_file():
        status = path.stat()
        if status.st_size < _REMEMBERED:
            return _file_digest(path, 0, 0)
        return _remembered_digest(path.absolute(), status.st_size, status.st_mtime_ns)
    whole = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file_path.relative_to(path).as_posix()
        whole.update(f"{name}\0{folder_digest(file_path)}\n".encode())
    return whole.hexdigest()


def _file_digest(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# A stage asks for the digest of its inputs more than once, and of gigabytes that takes a while.
_REMEMBERED = 64 << 20
_remembered_digest = functools.lru_cache(maxsize=256)(_file_digest)


def _sweep(out: Path) -> None:
    """Remove what writers of ``out`` left behind that were killed: their process is gone."""
    for left in out.parent.glob(f".{out.name}.*.writing"):
        owner = left.name.removesuffix(".writing").rpartition(".")[2]
        if owner.isdigit() and (int(owner) == os.getpid() or not psutil.pid_exists(int(owner))):
            shutil.rmtree(left, ignore_errors=True)


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS_OF:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
