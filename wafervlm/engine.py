"""Engine: a graph compiled for certain GPUs, in a folder of its own that names its bundle by digest.

The folder holds ``manifest.json``, the engine, two more where it generates text too, and ``verified.json``
once the golden maps came out on this machine. An engine is a program: nothing reads it before its digest
has been compared.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafervlm.bundle import MANIFEST, Bundle, open_plain, readable
from wafervlm.console import command
from wafervlm.engine_manifest import (
    ENGINE_FILE,
    EngineManifest,
    Place,
    Verification,
    engine_manifest,
    verification_of,
)
from wafervlm.engine_words import FEATURES_ENGINE, STEP_ENGINE, WordsVerification
from wafervlm.errors import (
    DigestError,
    FileSetError,
    ManifestError,
    ResourceError,
    UsageError,
)
from wafervlm.files import check_writable, flush_tree, replace_folder, write_whole
from wafervlm.manifest import FileEntry
from wafervlm.strict import MAX_MANIFEST_BYTES, read_json

VERIFIED = "verified.json"
ENGINE_FILES = (ENGINE_FILE, FEATURES_ENGINE, STEP_ENGINE)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine folder whose manifest was read; a file's digest is compared when it is read."""

    path: Path
    manifest: EngineManifest

    def read(self, entry: FileEntry) -> bytes:
        """The bytes of ``entry``, one of the manifest's files, read once and checked as read. Raises
        FileSetError and DigestError."""
        data = _read_plain(self.path / entry.path, entry.size)
        _check_size(self.path / entry.path, len(data), entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DigestError(
                f"{self.path / entry.path} is not the engine of its manifest, since its sha256 differs; do "
                f"not use it, build the engine again: {build_command(self.path)}"
            )
        return data

    def verified_at(self, place: Place) -> Verification | None:
        """The verification that holds for ``place``, of the build or of ``wafervlm verify``."""
        for found in (self.manifest.verification, self._record()):
            if found and found.place == place and found.engine == self.manifest.file.sha256:
                return found
        return None

    def words_verified_at(self, place: Place) -> WordsVerification | None:
        """The verification of its words that holds for ``place``."""
        words = self.manifest.words
        for found in (self.manifest.verification, self._record()):
            if words and found and found.place == place and found.words and found.words.is_of(words):
                return found.words
        return None

    def record(self, verification: Verification) -> bool:
        """Keep ``verification`` beside the engine; False where the folder cannot be written."""
        try:
            write_whole(self.path / VERIFIED, _text(verification.to_dict()), sync=False)
        except OSError:
            return False
        return True

    @property
    def is_writable(self) -> bool:
        """Whether a verification could be kept beside the engine."""
        if os.name != "nt":
            return os.access(self.path, os.W_OK)
        # Windows grants what the folder's access list then refuses: only writing tells.
        try:
            with tempfile.TemporaryFile(dir=self.path, prefix=f".{VERIFIED}."):
                return True
        except OSError:
            return False

    def _record(self) -> Verification | None:
        path = self.path / VERIFIED
        if not path.is_file():
            return None
        try:
            values = read_json(_read_plain(path, MAX_MANIFEST_BYTES), str(path))
            return verification_of(values, str(path))
        except ManifestError as error:
            raise ManifestError(f"{error}; remove {path} and run wafervlm verify --engine again") from None


def open_engine(path: str | Path, bundle: Bundle) -> Engine:
    """Open the engine folder ``path``, which must have been built from ``bundle``.

    Raises ManifestError, SchemaVersionError, FileSetError (a missing or extra file, a link), DigestError
    (another size than the manifest's) and UsageError where there is no folder, and for an engine of another
    bundle.
    """
    folder = Path(path)
    engine = Engine(folder, read_manifest(folder))
    manifest = engine.manifest
    if manifest.bundle != bundle.digest:
        raise UsageError(
            f"engine {folder} was built from bundle {manifest.bundle[:12]} ({manifest.bundle_name}) and this "
            f"is bundle {bundle.digest[:12]} ({bundle.manifest.name}); name that bundle with --bundle (in "
            f"Python bundle=){_build_another(bundle, manifest)}"
        )
    with readable(folder, "engine"):
        _check_files(engine)
    return engine


def read_manifest(folder: Path) -> EngineManifest:
    """The manifest of the engine folder ``folder``. Raises ManifestError, SchemaVersionError, and UsageError
    where there is no folder or a bundle's."""
    path = folder / MANIFEST
    with readable(folder, "engine"):
        there, found = folder.is_dir(), path.is_file()
    if not there:
        raise UsageError(
            f"there is no engine folder at {folder}; check the path, or build it: {build_command(folder)}"
        )
    if not found:
        raise ManifestError(
            f"{folder} holds no {MANIFEST}, so it is no engine folder; build one: "
            + build_command(Path("ENGINE"))
        )
    return engine_manifest(read_json(_read_plain(path, MAX_MANIFEST_BYTES), str(path)), str(path))


def build_command(
    engine: Path, bundle: Path | None = None, *, words: bool = False, like: EngineManifest | None = None
) -> str:
    """The command that builds ``engine``, in the place of what is there, with ``words`` too where so asked:
    for the GPU that is here, or for others where ``like`` was built ahead of time."""
    more = ["--replace"] if (engine / MANIFEST).exists() else []
    more += ["--words"] if words else []
    if like is not None and like.gpu is None:
        more += ["--target", f"rtx:{','.join(like.compute_capabilities)}"]
    return command("wafervlm", "engine", "--bundle", bundle or "BUNDLE", "-o", engine, *more)


def _build_another(bundle: Bundle, like: EngineManifest) -> str:
    """How to build an engine like this one from ``bundle``; nothing where TensorRT does not read it."""
    if bundle.manifest.graph.vision != "float32":
        return ""
    words = like.words is not None and bundle.manifest.words is not None
    again = build_command(Path("ENGINE"), bundle.path, words=words, like=like)
    return f", or build an engine from this one, in another folder: {again}"


def verify_command(engine: Path, bundle: Path) -> str:
    """The command that runs the golden maps on ``engine``."""
    return command("wafervlm", "verify", "--bundle", bundle, "--engine", engine)


@contextlib.contextmanager
def writing_engine(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out``; when the block ends well it takes the name ``out``.

    An engine that stood there is replaced; anything else is left and refused with UsageError, and so is a
    place that cannot be written. Raises ResourceError where the disk is full.
    """
    check_output(out)
    work = out.parent / f".{out.name}.{os.getpid()}.writing"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
        flush_tree(work)
        replace_folder(work, out)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ResourceError(f"the disk is full while writing {out}; free space and run again") from error
        error.filename, error.filename2 = str(out), None
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_output(out: Path) -> None:
    """Refuse to write over a folder that is no engine, or where nothing can be written. Raises UsageError."""
    if out.exists() and not (out.is_dir() and not _extra(out, ENGINE_FILES)):
        raise UsageError(f"{out} exists and is no engine folder; choose another folder")
    check_writable(out)


def write_file(folder: Path, data: Any, name: str = ENGINE_FILE) -> FileEntry:
    """Write ``data``, any buffer, as the engine ``name`` of ``folder``."""
    view = memoryview(data).cast("B")
    with ThreadPoolExecutor(1) as beside, open(folder / name, "wb") as file:
        digest = beside.submit(lambda: hashlib.sha256(view).hexdigest())
        file.write(view)
    return FileEntry(name, digest.result(), view.nbytes)


def write_engine_manifest(folder: Path, manifest: EngineManifest) -> None:
    """Write ``manifest.json`` into ``folder``, whole or not at all."""
    write_whole(folder / MANIFEST, _text(manifest.to_dict()), sync=False)


def now() -> str:
    """The time in UTC as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _text(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _check_files(engine: Engine) -> None:
    entries, folder = engine.manifest.files, engine.path
    if extra := _extra(folder, [entry.path for entry in entries]):
        raise FileSetError(f"engine {folder} holds {extra[0]!r}, which its manifest does not list; remove it")
    for entry in entries:
        path = folder / entry.path
        if not path.is_file() or path.is_symlink():
            raise FileSetError(
                f"engine {folder} lacks the file {entry.path!r}; build it again: {build_command(folder)}"
            )
        _check_size(path, path.stat().st_size, entry.size)


def _extra(folder: Path, files: Iterable[str]) -> list[str]:
    """Names in ``folder`` that are not of an engine; a verification that was being written is of it."""
    names = {path.name for path in folder.iterdir()} - {MANIFEST, VERIFIED, *files}
    return sorted(name for name in names if not name.startswith(f".{VERIFIED}."))


def _check_size(path: Path, size: int, wanted: int) -> None:
    if size != wanted:
        what = "truncated" if size < wanted else "changed"
        raise DigestError(
            f"{path} is {size} bytes and its manifest says {wanted}: {what}; do not use it, build the engine "
            f"again: {build_command(path.parent)}"
        )


def _read_plain(path: Path, size: int) -> bytes:
    """At most ``size`` + 1 bytes of ``path``, which may be no link. Raises FileSetError."""
    with readable(path.parent, "engine"), open_plain(path.parent, path.name, "engine") as file:
        # Python allocates as much as it is asked for, whatever the file holds.
        return file.read(min(size, os.fstat(file.fileno()).st_size) + 1)
