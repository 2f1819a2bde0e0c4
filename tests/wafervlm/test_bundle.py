from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wafervlm import bundle as bundle_module, golden as golden_module
from wafervlm.bundle import GOLDEN, MANIFEST, SCHEMA_VERSION, Bundle, Manifest, open_bundle, write_manifest
from wafervlm.errors import (
    DigestError,
    FileSetError,
    IntegrityError,
    LockError,
    ManifestError,
    SchemaVersionError,
    UsageError,
    WaferVLMError,
)
from wafervlm.golden import Golden, check_deployed, read_golden, write_golden
from wafervlm.loading import load
from wafervlm.strict import MAX_MANIFEST_BYTES
from wafervlm.verification import verify
from wafervlm.wafermap import WaferMap


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's values and write it back."""
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    (folder / MANIFEST).write_text(json.dumps(values))


class TestWhole:
    def test_opens_and_says_what_was_written(self, shared_toy_bundle: Path) -> None:
        opened = open_bundle(shared_toy_bundle)
        manifest = opened.manifest
        assert manifest.schema_version == SCHEMA_VERSION
        assert {entry.path for entry in manifest.files} == {"model.onnx", GOLDEN}
        assert all(entry.size == (shared_toy_bundle / entry.path).stat().st_size for entry in manifest.files)
        assert manifest.task.labels[0] == "Center"
        assert manifest.task_digest == manifest.task.digest
        assert manifest.provenance[0]["stage"] == "export"
        assert not opened.external_data

    def test_digest_names_the_content(self, toy_bundle: Path, shared_toy_bundle: Path) -> None:
        before = open_bundle(shared_toy_bundle).digest
        assert open_bundle(toy_bundle).digest == before
        edit(toy_bundle, lambda values: values.update(temperature=2.0))
        assert open_bundle(toy_bundle).digest != before

    def test_manifest_survives_json(self, shared_toy_bundle: Path) -> None:
        manifest = open_bundle(shared_toy_bundle).manifest
        assert Manifest.from_json(manifest.to_json().encode()) == manifest

    def test_read_gives_the_bytes(self, shared_toy_bundle: Path) -> None:
        opened = open_bundle(shared_toy_bundle)
        assert opened.read("model.onnx") == (shared_toy_bundle / "model.onnx").read_bytes()
        with pytest.raises(FileSetError, match="does not list"):
            opened.read("../secret")

    def test_path_may_be_text_or_a_link_to_the_folder(self, toy_bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "current").symlink_to(toy_bundle)
        assert open_bundle(str(tmp_path / "current")).digest == open_bundle(toy_bundle).digest


class TestFiles:
    """Each way in which the files can be wrong."""

    @pytest.mark.parametrize("name", ["model.onnx", GOLDEN])
    def test_changed(self, toy_bundle: Path, name: str) -> None:
        data = bytearray((toy_bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (toy_bundle / name).write_bytes(data)
        with pytest.raises(DigestError, match=f"{name}.*sha256 differs.*copy the bundle again"):
            open_bundle(toy_bundle)

    @pytest.mark.parametrize("name", ["model.onnx", GOLDEN])
    def test_truncated(self, toy_bundle: Path, name: str) -> None:
        (toy_bundle / name).write_bytes((toy_bundle / name).read_bytes()[:-5])
        with pytest.raises(DigestError, match="truncated"):
            open_bundle(toy_bundle)

    @pytest.mark.parametrize("name", ["model.onnx", GOLDEN])
    def test_missing(self, toy_bundle: Path, name: str) -> None:
        (toy_bundle / name).unlink()
        with pytest.raises(FileSetError, match=f"lacks the file '{name}'"):
            open_bundle(toy_bundle)

    def test_extra(self, toy_bundle: Path) -> None:
        (toy_bundle / "weights.bin").write_bytes(b"x")
        with pytest.raises(FileSetError, match=r"holds 'weights\.bin'.*does not list"):
            open_bundle(toy_bundle)

    def test_extra_folder(self, toy_bundle: Path) -> None:
        (toy_bundle / "sub").mkdir()
        with pytest.raises(FileSetError, match="holds 'sub'"):
            open_bundle(toy_bundle)

    @pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
    def test_symbolic_link(self, toy_bundle: Path, tmp_path: Path, name: str) -> None:
        (toy_bundle / name).rename(tmp_path / "elsewhere")
        (toy_bundle / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(FileSetError, match="symbolic link"):
            open_bundle(toy_bundle)

    @pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
    def test_hard_link(self, toy_bundle: Path, tmp_path: Path, name: str) -> None:
        os.link(toy_bundle / name, tmp_path / "elsewhere")
        with pytest.raises(FileSetError, match="hard link"):
            open_bundle(toy_bundle)

    def test_embedded_bundle_may_be_hard_linked_by_installers(
        self, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        os.link(toy_bundle / "model.onnx", tmp_path / "cache")
        monkeypatch.setattr(bundle_module, "EMBEDDED", toy_bundle)
        assert open_bundle().path == toy_bundle

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    def test_named_pipe_does_not_hang(self, toy_bundle: Path) -> None:
        (toy_bundle / "model.onnx").unlink()
        os.mkfifo(toy_bundle / "model.onnx")
        with pytest.raises(FileSetError, match="not a plain file"):
            open_bundle(toy_bundle)

    def test_changed_after_opening(self, toy_bundle: Path) -> None:
        opened = open_bundle(toy_bundle)
        data = (toy_bundle / "model.onnx").read_bytes()
        (toy_bundle / "model.onnx").write_bytes(data[::-1])
        with pytest.raises(DigestError):
            opened.read("model.onnx")

    def test_disk_that_fails(self, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(path: Path) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Path, "iterdir", fail)
        with pytest.raises(FileSetError, match="cannot be read: .*Input/output error"):
            open_bundle(toy_bundle)

    def test_gone_after_opening(self, toy_bundle: Path) -> None:
        opened = open_bundle(toy_bundle)
        (toy_bundle / GOLDEN).unlink()
        with pytest.raises(FileSetError, match="lacks"):
            opened.read(GOLDEN)


class TestNames:
    """Names in the manifest that would leave the folder."""

    @pytest.mark.parametrize(
        "name",
        [
            "/etc/passwd",
            "../model.onnx",
            "a/../../b",
            "sub/model.onnx",
            "C:\\x",
            "..",
            ".",
            "",
            "a\x00b",
            "x.",
            MANIFEST,
        ],
    )
    def test_refused(self, toy_bundle: Path, name: str) -> None:
        edit(toy_bundle, lambda values: values["files"][0].update(path=name))
        with pytest.raises(FileSetError, match="not a plain file name"):
            open_bundle(toy_bundle)

    def test_outer_file_is_never_opened(self, toy_bundle: Path, tmp_path: Path) -> None:
        outer = tmp_path / "outer"
        outer.write_bytes((toy_bundle / "model.onnx").read_bytes())
        edit(toy_bundle, lambda values: values["files"][1].update(path="../outer"))
        (toy_bundle / "model.onnx").unlink()
        with pytest.raises(FileSetError, match="not a plain file name"):
            open_bundle(toy_bundle)

    def test_listed_twice(self, toy_bundle: Path) -> None:
        edit(toy_bundle, lambda values: values["files"].append({**values["files"][0], "path": "GOLDEN.npz"}))
        with pytest.raises(FileSetError, match="twice"):
            open_bundle(toy_bundle)

    def test_graph_not_listed(self, toy_bundle: Path) -> None:
        edit(toy_bundle, lambda values: values["graph"].update(file="other.onnx"))
        with pytest.raises(FileSetError, match=r"does not list 'other\.onnx'"):
            open_bundle(toy_bundle)


class TestManifest:
    """Each way in which the manifest can be wrong."""

    def test_folder_absent(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no bundle folder"):
            open_bundle(tmp_path / "nowhere")

    def test_absent(self, toy_bundle: Path) -> None:
        (toy_bundle / MANIFEST).unlink()
        with pytest.raises(ManifestError, match="not a bundle"):
            open_bundle(toy_bundle)

    def test_embedded_absent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bundle_module, "EMBEDDED", tmp_path)
        with pytest.raises(ManifestError, match="no embedded bundle; name one"):
            open_bundle()

    @pytest.mark.parametrize(
        "data",
        [b"", b"{", b"not json", b"\xff\xfe{}", b"[" * 100_000, b'{"a": NaN}', b"nul", b"9" * 5000],
        ids=["empty", "cut", "text", "bytes", "deep", "nan", "cut-word", "digits"],
    )
    def test_not_json(self, toy_bundle: Path, data: bytes) -> None:
        (toy_bundle / MANIFEST).write_bytes(data)
        with pytest.raises(ManifestError, match="not valid JSON"):
            open_bundle(toy_bundle)

    def test_not_an_object(self, toy_bundle: Path) -> None:
        (toy_bundle / MANIFEST).write_text("[1, 2]")
        with pytest.raises(ManifestError, match="one JSON object"):
            open_bundle(toy_bundle)

    def test_huge(self, toy_bundle: Path) -> None:
        with (toy_bundle / MANIFEST).open("ab") as file:
            file.write(b" " * MAX_MANIFEST_BYTES)
        with pytest.raises(ManifestError, match="larger than 4 MiB"):
            open_bundle(toy_bundle)

    def test_from_the_future(self, toy_bundle: Path) -> None:
        edit(toy_bundle, lambda values: values.update(schema_version=SCHEMA_VERSION + 1, engines=[]))
        with pytest.raises(SchemaVersionError, match="schema version 2.*upgrade"):
            open_bundle(toy_bundle)

    def test_duplicate_key(self, toy_bundle: Path) -> None:
        text = (toy_bundle / MANIFEST).read_text()
        (toy_bundle / MANIFEST).write_text(text.replace('"name":', '"temperature": 1.0, "name":', 1))
        with pytest.raises(ManifestError, match="'temperature' is there twice"):
            open_bundle(toy_bundle)

    def test_unknown_key(self, toy_bundle: Path) -> None:
        edit(toy_bundle, lambda values: values.update(temprature=1.0))
        with pytest.raises(ManifestError, match="unknown key 'temprature'"):
            open_bundle(toy_bundle)

    @pytest.mark.parametrize("key", ["task", "graph", "files", "temperature", "name", "task_digest"])
    def test_missing_key(self, toy_bundle: Path, key: str) -> None:
        edit(toy_bundle, lambda values: values.pop(key))
        with pytest.raises(ManifestError, match=f"lacks the key '{key}'"):
            open_bundle(toy_bundle)

    def test_without_a_word_the_vision_tower_is_in_float32(self, toy_bundle: Path) -> None:
        edit(toy_bundle, lambda values: values["graph"].pop("vision"))
        assert open_bundle(toy_bundle).manifest.graph.vision == "float32"

    def test_without_a_word_the_operator_set_is_the_only_one_that_was(self, toy_bundle: Path) -> None:
        edit(toy_bundle, lambda values: values["graph"].pop("opset"))
        assert open_bundle(toy_bundle).manifest.graph.opset == 23

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("schema_version",), "1"),
            (("schema_version",), True),
            (("schema_version",), 0),
            (("name",), 3),
            (("temperature",), "1.5"),
            (("temperature",), True),
            (("temperature",), 0.0),
            (("temperature",), -1.0),
            (("verify_tolerance",), -0.1),
            (("files",), {}),
            (("files",), ["model.onnx"]),
            (("files", 0, "size"), 1.5),
            (("files", 0, "size"), -1),
            (("files", 0, "sha256"), "abc"),
            (("files", 0, "mode"), 7),
            (("provenance",), ["x"]),
            (("parity",), {"a": "b"}),
            (("citations",), [1]),
            (("graph", "precision"), "int5"),
            (("graph", "accuracy_level"), 3),
            (("graph", "vision"), "int4"),
            (("graph", "opset"), 0),
            (("graph", "opset"), "21"),
            (("graph", "group_size"), None),
            (("graph", "group_size"), True),
            (("graph", "provider"), "x"),
            (("task", "labels"), "abc"),
            (("task", "labels"), ["a", 1]),
            (("task", "prompt"), 1),
            (("task", "system"), 1),
            (("task", "spellings"), {"Center": 1}),
            (("task", "question"), "x"),
            (("task", "render"), []),
            (("task", "render", "height"), "32"),
            (("task", "render", "palette"), [["a", "b", "c"]] * 3),
        ],
    )
    def test_wrong_value(self, toy_bundle: Path, place: tuple[Any, ...], value: object) -> None:
        def change(values: Any) -> None:
            for key in place[:-1]:
                values = values[key]
            values[place[-1]] = value

        edit(toy_bundle, change)
        with pytest.raises(ManifestError):
            open_bundle(toy_bundle)

    def test_infinite_number(self, toy_bundle: Path) -> None:
        text = (toy_bundle / MANIFEST).read_text().replace('"temperature": 1.7', '"temperature": 1e999')
        (toy_bundle / MANIFEST).write_text(text)
        with pytest.raises(ManifestError, match="temperature.*finite"):
            open_bundle(toy_bundle)

    @pytest.mark.parametrize(
        ("key", "value"),
        [("prompt", "What is this?"), ("answer_prefix", ""), ("labels", ["Center", "none", "x", "y"])],
    )
    def test_task_does_not_match_the_lock(self, toy_bundle: Path, key: str, value: object) -> None:
        edit(toy_bundle, lambda values: values["task"].update({key: value}))
        with pytest.raises(LockError, match="locked to") as raised:
            open_bundle(toy_bundle)
        assert raised.value.exit_code == 3, "the artefact is not as it was written"

    def test_render_does_not_match_the_lock(self, toy_bundle: Path) -> None:
        edit(toy_bundle, lambda values: values["task"]["render"].update(height=64))
        with pytest.raises(LockError):
            open_bundle(toy_bundle)


class TestWriting:
    def test_refuses_what_could_not_be_opened(self, toy_bundle: Path) -> None:
        manifest = open_bundle(toy_bundle).manifest
        with pytest.raises(ManifestError, match="temperature"):
            write_manifest(toy_bundle, replace(manifest, temperature=0.0))
        with pytest.raises(ManifestError, match="JSON"):
            write_manifest(toy_bundle, replace(manifest, temperature=float("nan")))
        with pytest.raises(ManifestError, match="JSON"):
            write_manifest(toy_bundle, replace(manifest, provenance=({"path": Path("x")},)))
        (toy_bundle / GOLDEN).unlink()
        with pytest.raises(FileSetError, match="does not list"):
            write_manifest(toy_bundle, manifest)

    def test_refuses_a_folder_and_a_link(self, toy_bundle: Path) -> None:
        manifest = open_bundle_manifest(toy_bundle)
        (toy_bundle / "sub").mkdir()
        with pytest.raises(FileSetError, match="not a plain file"):
            write_manifest(toy_bundle, manifest)
        (toy_bundle / "sub").rmdir()
        (toy_bundle / "sub").symlink_to(toy_bundle / "model.onnx")
        with pytest.raises(FileSetError, match="not a plain file"):
            write_manifest(toy_bundle, manifest)

    def test_lists_what_lies_there(self, toy_bundle: Path) -> None:
        (toy_bundle / "model.onnx.data").write_bytes(b"weights")
        write_manifest(toy_bundle, open_bundle_manifest(toy_bundle))
        opened = open_bundle(toy_bundle)
        assert opened.external_data
        assert opened.read("model.onnx.data") == b"weights"


def open_bundle_manifest(folder: Path) -> Manifest:
    return Manifest.from_json((folder / MANIFEST).read_bytes())


def test_mutants_are_refused(shared_toy_bundle: Path, toy_bundle: Path) -> None:
    """Whatever byte is changed, opening raises one of our errors, or it is another bundle."""
    rng = random.Random(5)
    names = [MANIFEST, "model.onnx", GOLDEN]
    whole = {name: (shared_toy_bundle / name).read_bytes() for name in names}
    digest = open_bundle(shared_toy_bundle).digest
    for _ in range(400):
        name = rng.choice(names)
        data = bytearray(whole[name])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= rng.randint(1, 255)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        (toy_bundle / name).write_bytes(data)
        if name != MANIFEST:
            with pytest.raises(IntegrityError):
                open_bundle(toy_bundle)
        else:
            with suppress(WaferVLMError):
                assert open_bundle(toy_bundle).digest != digest
        (toy_bundle / name).write_bytes(whole[name])
    assert open_bundle(toy_bundle).digest == digest


class TestGolden:
    def golden(self) -> Golden:
        maps = (WaferMap(np.eye(5, dtype=int)), WaferMap(np.full((3, 7), 2)))
        return Golden(maps, ("Loc", ""), np.log([[0.5, 0.5], [0.25, 0.75]]))

    def opened(self, folder: Path) -> Bundle:
        write_manifest(folder, open_bundle_manifest(folder))
        return open_bundle(folder)

    def test_reads_what_was_written(self, shared_toy_bundle: Path, toy_bundle: Path) -> None:
        golden = read_golden(open_bundle(shared_toy_bundle))
        write_golden(toy_bundle / GOLDEN, golden)
        again = read_golden(self.opened(toy_bundle))
        assert again.maps == golden.maps
        assert again.labels == golden.labels
        assert again.reference.dtype == np.float32
        np.testing.assert_array_equal(again.reference, golden.reference)
        assert (toy_bundle / GOLDEN).read_bytes() == (shared_toy_bundle / GOLDEN).read_bytes()

    @pytest.mark.parametrize(
        "change",
        [
            {"temperature": 0.9},
            {"verify_tolerance": 0.3},
            {"graph": {"accuracy_level": 0}},
            {"graph": {"vision": "int8"}},
        ],
    )
    def test_a_setting_changed_after_export_is_seen(self, toy_bundle: Path, change: dict[str, Any]) -> None:
        """Answers depend on it, and no file's digest covers the manifest."""
        write_golden(
            toy_bundle / GOLDEN, read_golden(open_bundle(toy_bundle)), open_bundle_manifest(toy_bundle)
        )
        whole = self.opened(toy_bundle)
        check_deployed(whole)
        assert read_golden(whole).reference.shape == (6, 4), "older programs read the rest"
        ((name, value),) = change.items()
        edit(
            toy_bundle,
            lambda values: values.update({name: {**values[name], **value} if name == "graph" else value}),
        )
        name = next(iter(value)) if name == "graph" else name
        for use in (load, verify):
            with pytest.raises(IntegrityError, match=f"{name} in the manifest .* it was changed afterwards"):
                use(toy_bundle, threads=1)

    def test_a_bundle_from_before_settings_were_kept_is_taken(self, toy_bundle: Path) -> None:
        check_deployed(open_bundle(toy_bundle))
        edit(toy_bundle, lambda values: values.update(temperature=0.9))
        check_deployed(open_bundle(toy_bundle))

    @pytest.mark.parametrize("kept", [b"no JSON", b"[1]", b"\xff"])
    def test_kept_settings_that_are_none(self, toy_bundle: Path, kept: bytes) -> None:
        with np.load(toy_bundle / GOLDEN) as archive:
            arrays = dict(archive)
        np.savez(toy_bundle / GOLDEN, **arrays, deployed=np.frombuffer(kept, np.uint8))
        with pytest.raises(IntegrityError, match="cannot be read"):
            check_deployed(self.opened(toy_bundle))

    def test_other_labels(self, toy_bundle: Path) -> None:
        write_golden(toy_bundle / GOLDEN, self.golden())
        with pytest.raises(IntegrityError, match="2 labels and the task has 4"):
            read_golden(self.opened(toy_bundle))

    @pytest.mark.parametrize("kind", ["text", "pickle", "shape", "enormous", "missing"])
    def test_not_golden_maps(self, toy_bundle: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(golden_module, "MAX_BYTES", 1 << 20)
        good = self.golden()
        arrays: dict[str, Any] = {
            "maps": np.concatenate([wafer.dies.ravel() for wafer in good.maps]),
            "offsets": np.array([0, 25, 46]),
            "heights": np.array([5, 3]),
            "widths": np.array([5, 7]),
            "labels": np.array(good.labels),
            "reference": good.reference,
        }
        if kind == "pickle":
            arrays["labels"] = np.array([print, print], dtype=object)
        elif kind == "shape":
            arrays["widths"] = np.array([5, 8])
        elif kind == "enormous":
            arrays["maps"] = np.zeros(2 << 20, dtype=np.uint8)
        elif kind == "missing":
            del arrays["reference"]
        np.savez_compressed(toy_bundle / GOLDEN, **arrays)
        if kind == "text":
            (toy_bundle / GOLDEN).write_bytes(b"no archive")
        with pytest.raises(IntegrityError, match="cannot be read"):
            read_golden(self.opened(toy_bundle))

    def test_refuses_what_is_no_reference(self) -> None:
        good = self.golden()
        with pytest.raises(UsageError, match="one row"):
            Golden(good.maps, good.labels, good.reference[:1])
        with pytest.raises(UsageError, match="not finite"):
            Golden(good.maps, good.labels, np.full((2, 2), np.nan))
