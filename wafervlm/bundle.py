"""Bundle: the folder a station loads, and opening it safely.

A bundle holds ``manifest.json``, the graph, and golden maps with reference scores (golden.py).
The manifest lists every other file with its size and sha256. Nothing in a bundle is parsed before
its digest has been compared, except the manifest itself, which is plain JSON of at most 4 MiB.

The graph's contract: input ``image`` uint8 (B, H, W, 3) with a dynamic first dimension named
``batch``; output ``label_log_probs`` float32 (B, L) in the order of the task's labels, normalised
over the labels, before temperature.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from wafervlm.errors import DigestError, FileSetError, ManifestError, UsageError
from wafervlm.manifest import SCHEMA_VERSION, FileEntry, Graph, Manifest
from wafervlm.strict import MAX_MANIFEST_BYTES

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "SCHEMA_VERSION",
    "Bundle",
    "FileEntry",
    "Graph",
    "Manifest",
    "open_bundle",
    "write_manifest",
]

MANIFEST, GOLDEN = "manifest.json", "golden.npz"
EMBEDDED = Path(__file__).parent / "nano" / "bundle"

# Longer graphs cannot be one protobuf message; their weights lie in a file beside them.
EXTERNAL_SUFFIX = ".data"

_CHUNK = 1 << 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}(?<![.])")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were found to be as the manifest says when it was opened.

    ``digest`` is the sha256, 64 hex digits, of the bytes of ``manifest.json``; it names the bundle.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def external_data(self) -> bool:
        """Whether the graph keeps its weights in a file of its own."""
        name = self.manifest.graph.file + EXTERNAL_SUFFIX
        return any(entry.path == name for entry in self.manifest.files)

    def read(self, name: str) -> bytes:
        """Return the bytes of the file ``name``, read once and checked as read.

        Raises FileSetError where the manifest does not list it or it is not a plain file,
        DigestError where it changed.
        """
        for entry in self.manifest.files:
            if entry.path == name:
                with readable(self.path):
                    return b"".join(_checked_chunks(self.path, entry))
        raise FileSetError(f"bundle {self.path} has no file {name!r}; its manifest does not list it")


def open_bundle(path: str | Path | None = None) -> Bundle:
    """Open the bundle folder at ``path`` (the embedded one when None) and check every file in it.

    Raises ManifestError, SchemaVersionError, LockError (the task is not the one the digest names),
    FileSetError (a missing or extra file, a link, a name that leaves the folder) and DigestError
    (a changed or truncated file), UsageError for no folder and for an engine's. Nothing is written.
    """
    folder = embedded_folder() if path is None else Path(path)
    with readable(folder):
        if not folder.is_dir():
            raise UsageError(f"there is no bundle folder at {folder}; check the path")
        data = _read_manifest(folder)
        manifest = Manifest.from_json(data, str(folder / MANIFEST))
        check_names(manifest, folder)
        _check_set(folder, {entry.path for entry in manifest.files})
        for entry in manifest.files:
            for _ in _checked_chunks(folder, entry):
                pass
    return Bundle(folder, manifest, hashlib.sha256(data).hexdigest())


def embedded_folder() -> Path:
    """The folder of the bundle that comes with the package. Raises ManifestError where it is absent."""
    if not (EMBEDDED / MANIFEST).is_file():
        raise ManifestError(
            "this installation of wafervlm carries no embedded bundle; name one, as in load('bundle/'), "
            "or reinstall the wheel"
        )
    return EMBEDDED


def write_manifest(folder: str | Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` into ``folder`` and return the manifest as written.

    ``manifest.files`` is replaced by the entries of the files that lie in ``folder``, so write the
    graph and the golden maps first. Raises what opening it would raise.
    """
    folder = Path(folder)
    names = sorted(item.name for item in folder.iterdir() if item.name != MANIFEST)
    manifest = replace(manifest, files=tuple(_entry(folder / name) for name in names))
    check_names(manifest, folder)
    text = manifest.to_json()
    Manifest.from_json(text.encode(), str(folder / MANIFEST))
    with open(folder / MANIFEST, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    return manifest


def check_names(manifest: Manifest, folder: Path) -> None:
    """Refuse a name that is not a plain name inside ``folder``, and a graph or golden maps not listed."""
    seen: set[str] = set()
    for entry in manifest.files:
        if not _PLAIN_NAME.fullmatch(entry.path) or entry.path == MANIFEST:
            raise FileSetError(
                f"the manifest of bundle {folder} lists {entry.path!r}, which is not a plain file name "
                "inside the bundle; do not use this bundle"
            )
        if entry.path.lower() in seen:
            raise FileSetError(f"the manifest of bundle {folder} lists {entry.path!r} twice")
        seen.add(entry.path.lower())
    words = () if manifest.words is None else manifest.words.files
    for name in (manifest.graph.file, GOLDEN, *words):
        if name.lower() not in seen:
            raise FileSetError(
                f"the manifest of bundle {folder} does not list {name!r}; export the bundle again"
            )


@contextmanager
def readable(folder: Path, kind: str = "bundle") -> Iterator[None]:
    """Turn what the system says of ``folder``, an artefact of that ``kind``, into FileSetError."""
    try:
        yield
    except OSError as error:
        raise FileSetError(
            f"{kind} {folder} cannot be read: {error}; check its permissions and its disk"
        ) from None


def _entry(path: Path) -> FileEntry:
    if path.is_symlink() or not path.is_file():
        raise FileSetError(f"{path} is not a plain file; a bundle holds only plain files")
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(path.name, digest.hexdigest(), size)


def _read_manifest(folder: Path) -> bytes:
    try:
        with open_plain(folder, MANIFEST) as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise ManifestError(f"{folder} holds no {MANIFEST}, so it is not a bundle; check the path") from None
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(
            f"{folder / MANIFEST} is larger than {MAX_MANIFEST_BYTES >> 20} MiB, which no manifest is"
        )
    return data


def _check_set(folder: Path, listed: set[str]) -> None:
    present = {item.name for item in folder.iterdir()} - {MANIFEST}
    missing, extra = sorted(listed - present), sorted(present - listed)
    if missing:
        raise FileSetError(f"bundle {folder} lacks the file {missing[0]!r}; copy the bundle again, whole")
    if extra:
        raise FileSetError(
            f"bundle {folder} holds {extra[0]!r}, which its manifest does not list; remove it, "
            "or copy the bundle again"
        )


def _checked_chunks(folder: Path, entry: FileEntry) -> Iterator[bytes]:
    """Yield the bytes of a file; raise DigestError at the end unless they are those of ``entry``."""
    again = "copy the bundle again from where it was exported"
    digest, size = hashlib.sha256(), 0
    try:
        file = open_plain(folder, entry.path)
    except FileNotFoundError:
        raise FileSetError(
            f"bundle {folder} lacks the file {entry.path!r}; copy the bundle again, whole"
        ) from None
    with file:
        actual = os.fstat(file.fileno()).st_size
        if actual != entry.size:
            what = "truncated" if actual < entry.size else "changed"
            raise DigestError(
                f"{folder / entry.path} is {actual} bytes and the manifest says {entry.size}: {what}; {again}"
            )
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise DigestError(
            f"{folder / entry.path} is not the file of the manifest: its sha256 differs; {again}"
        )


def open_plain(folder: Path, name: str, kind: str = "bundle") -> BinaryIO:
    """Open ``folder / name`` of an artefact of that ``kind`` for reading, without following a link. Raises
    FileSetError, and FileNotFoundError where it is not there."""
    path = folder / name
    if path.is_symlink():
        raise FileSetError(
            f"{path} is a symbolic link; {kind} folders hold only files of their own, so copy the file"
        )
    # No link that appears just now is followed, and no pipe is waited for; Windows has only O_BINARY.
    flags = os.O_RDONLY
    for flag in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):
        flags |= getattr(os, flag, 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileSetError(f"{path} cannot be opened as a plain file: {error.strerror or error}") from None
    file = os.fdopen(descriptor, "rb")
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise FileSetError(f"{path} is not a plain file; {kind} folders hold only plain files")
    # Installers hard-link package data into site-packages from a cache of theirs.
    if status.st_nlink > 1 and folder != EMBEDDED:
        file.close()
        raise FileSetError(
            f"{path} has a second name outside the {kind} (a hard link); copy the file instead of linking it"
        )
    return file
