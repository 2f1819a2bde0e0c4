"""The engine folder: its manifest, opening it, writing it, and what is kept beside it. No TensorRT needed."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import wafervlm
from wafervlm.bundle import Bundle, FileEntry, open_bundle
from wafervlm.engine import (
    VERIFIED,
    Engine,
    check_output,
    open_engine,
    read_manifest,
    write_engine_manifest,
    write_file,
    writing_engine,
)
from wafervlm.engine_manifest import ENGINE_FILE, EngineManifest, Place, Verification
from wafervlm.engine_words import (
    FEATURES_ENGINE,
    STEP_ENGINE,
    GoldenText,
    WordsEngines,
    WordsVerification,
)
from wafervlm.errors import (
    DigestError,
    FileSetError,
    ManifestError,
    ResourceError,
    SchemaVersionError,
    UsageError,
)
from wafervlm.verification import verify

HERE = Place("Fake GPU", "8.9", "13.0", "tensorrt_rtx", "1.7.1.116")
BYTES = b"an engine" * 1000


def manifest_of(bundle: Bundle, /, **changes: Any) -> EngineManifest:
    whole = EngineManifest(
        bundle=bundle.digest,
        bundle_name=bundle.manifest.name,
        task_digest=bundle.manifest.task_digest,
        created="2026-11-21T08:00:00Z",
        builder="tensorrt_rtx",
        builder_version="1.7.1.116",
        compute_capabilities=("8.6", "8.9"),
        precision="bf16",
        weights="int4",
        max_batch=16,
        tolerance=0.5,
        file=FileEntry(ENGINE_FILE, "0" * 64, 0),
    )
    return replace(whole, **changes)


def write(bundle: Bundle, folder: Path, /, **changes: Any) -> Path:
    with writing_engine(folder) as work:
        entry = write_file(work, BYTES)
        write_engine_manifest(work, manifest_of(bundle, file=entry, **changes))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def verification(engine: Engine, place: Place = HERE) -> Verification:
    return Verification(engine.manifest.file.sha256, place, 6, 0.01, 0.001, 1.0, 0.5, "2026-11-21T09:00:00Z")


@pytest.fixture
def bundle(shared_toy_bundle: Path) -> Bundle:
    return open_bundle(shared_toy_bundle)


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return write(bundle, tmp_path / "engine")


def test_an_engine_comes_back_as_it_was_written(bundle: Bundle, folder: Path) -> None:
    opened = open_engine(folder, bundle)
    assert opened.read(opened.manifest.file) == BYTES
    assert opened.manifest == manifest_of(bundle, file=opened.manifest.file)
    assert (opened.manifest.file.size, opened.manifest.verification) == (len(BYTES), None)


def test_a_swapped_engine_is_never_handed_out(bundle: Bundle, folder: Path) -> None:
    (folder / ENGINE_FILE).write_bytes(BYTES[::-1])
    opened = open_engine(folder, bundle)
    with pytest.raises(
        DigestError, match="sha256 differs.*build the engine again: wafervlm engine .*--replace"
    ):
        opened.read(opened.manifest.file)


@pytest.mark.parametrize(
    ("data", "what"), [(BYTES[:-1], "truncated"), (BYTES + b"x", "changed"), (b"", "trunc")]
)
def test_an_engine_of_another_size_is_refused_at_once(
    bundle: Bundle, folder: Path, data: bytes, what: str
) -> None:
    opened = open_engine(folder, bundle)
    (folder / ENGINE_FILE).write_bytes(data)
    what = f"is {len(data)} bytes and its manifest says {len(BYTES)}: {what}.*--replace"
    for read in (lambda: opened.read(opened.manifest.file), lambda: open_engine(folder, bundle)):
        with pytest.raises(DigestError, match=what):
            read()


def test_an_engine_of_another_bundle_says_which(bundle: Bundle, tmp_path: Path) -> None:
    other = write(bundle, tmp_path / "other", bundle="1" * 64, bundle_name="another")
    with pytest.raises(UsageError) as raised:
        open_engine(other, bundle)
    said = str(raised.value)
    assert "bundle 111111111111 (another)" in said and "name that bundle with --bundle" in said
    again = f"wafervlm engine --bundle {bundle.path} -o ENGINE --target rtx:8.6,8.9"
    assert said.endswith(f"in another folder: {again}"), "not in the place of the engine of that bundle"
    graph = replace(bundle.manifest.graph, vision="int8")
    unbuildable = replace(bundle, manifest=replace(bundle.manifest, graph=graph))
    with pytest.raises(UsageError, match=r"name that bundle with --bundle \(in Python bundle=\)$"):
        open_engine(other, unbuildable)


def test_files_that_do_not_belong(bundle: Bundle, folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(FileSetError, match=r"extra\.bin"):
        open_engine(folder, bundle)
    (folder / "extra.bin").unlink()
    (folder / ENGINE_FILE).unlink()
    with pytest.raises(FileSetError, match="lacks the file"):
        open_engine(folder, bundle)
    (folder / ENGINE_FILE).symlink_to(folder / "manifest.json")
    with pytest.raises(FileSetError, match="lacks the file"):
        open_engine(folder, bundle)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"schema_version": 3}, SchemaVersionError, "upgrade"),
        ({"schema_version": "1"}, ManifestError, "schema_version"),
        ({"schema_version": 0}, ManifestError, "schema_version"),
        ({"builder": "torch"}, ManifestError, "builder"),
        ({"precision": "fp8"}, ManifestError, "precision"),
        ({"max_batch": 0}, ManifestError, "max_batch in .* is 0; it must be 1 or more"),
        ({"min_batch": 0}, ManifestError, "min_batch in .* is 0; it must be 1 or more"),
        ({"min_batch": 17}, ManifestError, "max_batch in .* is 16; it must be 17 or more"),
        ({"tolerance": 0}, ManifestError, "tolerance"),
        ({"tolerance": None}, ManifestError, "tolerance"),
        ({"compute_capabilities": []}, ManifestError, "compute_capabilities"),
        ({"compute_capabilities": [8.9]}, ManifestError, "compute_capabilities"),
        ({"gpu": 3}, ManifestError, "gpu"),
        ({"verification": []}, ManifestError, "verification"),
        ({"verification": {"place": {}}}, ManifestError, "verification"),
        ({"file": {"path": "../x", "sha256": "0" * 64, "size": 1}}, ManifestError, "model.engine"),
        ({"file": {"path": ENGINE_FILE, "sha256": "0", "size": 1}}, ManifestError, "sha256"),
        ({"surprise": 1}, ManifestError, "surprise"),
    ],
)
def test_a_manifest_is_read_strictly(
    folder: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=words):
        read_manifest(folder)


def words_of(work: Path) -> WordsEngines:
    golden = GoldenText(((3, 1), (7, 2)), ((-0.5, -1.5), (-0.25, -2.0)))
    features, step = (write_file(work, name.encode(), name) for name in (FEATURES_ENGINE, STEP_ENGINE))
    return WordsEngines(features, step, 64, 300, (golden,))


@pytest.fixture
def spoken(bundle: Bundle, tmp_path: Path) -> Path:
    """An engine folder with words."""
    with writing_engine(tmp_path / "spoken") as work:
        entry = write_file(work, BYTES)
        write_engine_manifest(work, manifest_of(bundle, file=entry, words=words_of(work)))
    return tmp_path / "spoken"


def test_words_come_back_as_they_were_written(bundle: Bundle, spoken: Path) -> None:
    opened = open_engine(spoken, bundle)
    words = opened.manifest.words
    assert words is not None and words.golden[0].said == (3, 7)
    assert [opened.read(entry) for entry in opened.manifest.files] == [
        BYTES,
        b"features.engine",
        b"step.engine",
    ]
    assert read_manifest(spoken) == opened.manifest
    assert json.loads((spoken / "manifest.json").read_text())["schema_version"] == 2
    (spoken / STEP_ENGINE).write_bytes(b"step.enginE")
    with pytest.raises(DigestError, match="sha256 differs"):
        opened.read(words.step)
    (spoken / FEATURES_ENGINE).unlink()
    with pytest.raises(FileSetError, match="lacks the file 'features.engine'"):
        open_engine(spoken, bundle)
    check_output(spoken)


def test_an_engine_without_words_is_written_as_before_there_were_any(bundle: Bundle, folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    assert values["schema_version"] == 1 and "words" not in values
    (folder / STEP_ENGINE).touch()
    with pytest.raises(FileSetError, match=r"holds 'step\.engine'"):
        open_engine(folder, bundle)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_prompt": 0}, "max_prompt"),
        ({"context": 63}, "context"),
        ({"golden": []}, "golden"),
        ({"golden": [{"tokens": [[1]], "log_probs": []}]}, "log_probs"),
        ({"golden": [{"tokens": [[1]], "log_probs": [[None]]}]}, "log_probs"),
        ({"golden": [{"tokens": [[-1]], "log_probs": [[0.0]]}]}, "tokens"),
        ({"golden": [{"tokens": [[1]], "log_probs": [[0.0, 0.0]]}]}, "log_probs"),
        ({"golden": [3]}, "must be a table"),
        ({"step": {"path": "model.engine", "sha256": "0" * 64, "size": 1}}, "step.engine"),
        ({"more": 1}, "more"),
    ],
)
def test_words_are_read_strictly(spoken: Path, change: dict[str, Any], words: str) -> None:
    path = spoken / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "words": {**values["words"], **change}}))
    with pytest.raises(ManifestError, match=words):
        read_manifest(spoken)


def test_words_are_verified_apart(bundle: Bundle, spoken: Path) -> None:
    opened = open_engine(spoken, bundle)
    words = opened.manifest.words
    assert words is not None
    assert opened.record(verification(opened))
    assert opened.verified_at(HERE) and opened.words_verified_at(HERE) is None
    found = WordsVerification(words.features.sha256, words.step.sha256, 2, 0.01, 1.0)
    for made, good in ((found, True), (replace(found, step="0" * 64), False)):
        opened.record(replace(verification(opened), words=made))
        assert open_engine(spoken, bundle).words_verified_at(HERE) == (made if good else None)
        assert opened.words_verified_at(replace(HERE, driver="12.9")) is None


def test_what_words_are_as_good_as_others(bundle: Bundle) -> None:
    entry = FileEntry(STEP_ENGINE, "0" * 64, 0)
    spoken, longer = (manifest_of(bundle, words=WordsEngines(entry, entry, n, 300, ())) for n in (64, 65))
    silent = manifest_of(bundle)
    assert silent.made_like(spoken) and not spoken.made_like(silent)
    assert spoken.made_like(spoken) and not spoken.made_like(longer)


def test_a_folder_without_a_manifest_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no engine folder; build one: wafervlm engine"):
        read_manifest(tmp_path)


def test_a_verification_holds_where_it_was_made_and_nowhere_else(bundle: Bundle, folder: Path) -> None:
    opened = open_engine(folder, bundle)
    assert opened.verified_at(HERE) is None
    assert opened.record(verification(opened))
    assert open_engine(folder, bundle).verified_at(HERE) == verification(opened)
    for other in (
        {"gpu": "Other"},
        {"driver": "12.9"},
        {"builder_version": "1.8"},
        {"compute_capability": "8.6"},
    ):
        assert opened.verified_at(replace(HERE, **other)) is None


def test_a_verification_does_not_outlive_its_engine(bundle: Bundle, folder: Path) -> None:
    first = open_engine(folder, bundle)
    first.record(replace(verification(first), engine="2" * 64))
    assert first.verified_at(HERE) is None


def test_a_verification_made_at_the_build_counts(bundle: Bundle, tmp_path: Path) -> None:
    plain = open_engine(write(bundle, tmp_path / "a"), bundle)
    with_it = open_engine(write(bundle, tmp_path / "b", verification=verification(plain)), bundle)
    assert with_it.verified_at(HERE) == verification(plain)


def test_a_damaged_record_is_an_error_not_a_pass(bundle: Bundle, folder: Path) -> None:
    (folder / VERIFIED).write_text("{}")
    with pytest.raises(ManifestError, match="lacks the key.*remove .*run wafervlm verify --engine"):
        open_engine(folder, bundle).verified_at(HERE)


def test_a_folder_that_cannot_be_written_keeps_no_record(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    opened = open_engine(folder, bundle)
    assert not opened.record(verification(opened))
    assert names(folder) == ["manifest.json", ENGINE_FILE]


def test_what_a_killed_verify_left_is_in_no_ones_way(bundle: Bundle, folder: Path) -> None:
    (folder / f".{VERIFIED}.77.writing").write_text("{")
    opened = open_engine(folder, bundle)
    assert opened.read(opened.manifest.file) == BYTES
    check_output(folder)


def test_a_file_that_is_no_plain_one_is_not_read(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(BYTES)
    (folder / ENGINE_FILE).unlink()
    (folder / ENGINE_FILE).hardlink_to(tmp_path / "outside")
    opened = open_engine(folder, bundle)
    with pytest.raises(FileSetError, match="hard link"):
        opened.read(opened.manifest.file)
    (folder / VERIFIED).symlink_to(folder / "manifest.json")
    with pytest.raises(FileSetError, match="symbolic link; engine folders"):
        open_engine(folder, bundle).verified_at(HERE)


def test_writing_replaces_an_engine_whole(bundle: Bundle, folder: Path) -> None:
    write(bundle, folder, max_batch=4)
    assert read_manifest(folder).max_batch == 4
    assert names(folder.parent) == [folder.name]


def test_a_build_that_fails_leaves_the_engine_that_stands(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(RuntimeError), writing_engine(folder) as work:
        write_file(work, b"half")
        raise RuntimeError
    opened = open_engine(folder, bundle)
    assert opened.read(opened.manifest.file) == BYTES
    assert names(folder.parent) == [folder.name]


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the disk is full while writing"), writing_engine(tmp_path / "e"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda p: (p.mkdir(), (p / "thesis.tex").touch()), lambda p: p.touch()])
def test_nothing_else_is_written_over(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "mine")
    with pytest.raises(UsageError, match="no engine folder; choose another"):
        check_output(tmp_path / "mine")
    with pytest.raises(UsageError), writing_engine(tmp_path / "mine"):
        pytest.fail("it was opened")


def test_a_place_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only file system, where the superuser may not either."""
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != tmp_path)
    with pytest.raises(UsageError, match=f"cannot be written, since you may not write in {tmp_path};"):
        check_output(tmp_path / "new" / "engine")
    monkeypatch.undo()
    check_output(tmp_path / "new" / "engine")


def test_what_makes_two_engines_the_same(bundle: Bundle) -> None:
    one = manifest_of(bundle)
    assert one.made_like(
        manifest_of(bundle, created="later", gpu="A", file=FileEntry(ENGINE_FILE, "3" * 64, 9))
    )
    for change in ({"max_batch": 8}, {"precision": "fp16"}, {"bundle": "4" * 64}, {"builder_version": "2"}):
        assert not one.made_like(manifest_of(bundle, **change))


def test_load_asks_for_what_belongs_together(shared_toy_bundle: Path, folder: Path) -> None:
    with pytest.raises(UsageError, match="runs an engine, and none is named.*wafervlm engine --bundle"):
        wafervlm.load(shared_toy_bundle, runtime="tensorrt")
    with pytest.raises(UsageError, match="runs no engine"):
        wafervlm.load(shared_toy_bundle, runtime="onnx", engine=folder)
    with pytest.raises(UsageError, match="keeps no runtime cache"):
        wafervlm.load(shared_toy_bundle, runtime_cache=folder)
    for options in ({"runtime": "auto"}, {"runtime_cache": folder}):
        with pytest.raises(UsageError, match="leave 'auto' and the cache out"):
            verify(shared_toy_bundle, **options)  # type: ignore[arg-type]


def test_auto_says_what_it_took_and_why(
    shared_toy_bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with caplog.at_level("INFO", "wafervlm"), wafervlm.load(shared_toy_bundle, runtime="auto") as model:
        assert model.runtime.startswith(
            "onnx (not tensorrt: no engine was named; not onnx-cuda: this ONNX Runtime is built without CUDA"
        )
    assert "runtime auto is onnx: not tensorrt" in caplog.text


def test_load_without_arguments_is_as_it_was() -> None:
    with wafervlm.load() as model:
        assert model.runtime == "onnx"
