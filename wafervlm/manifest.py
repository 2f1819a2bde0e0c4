"""The manifest of a bundle: its fields, and reading it strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from wafervlm.errors import LockError, ManifestError, SchemaVersionError, UsageError
from wafervlm.strict import check_items, check_range, check_table, is_kind, read_json
from wafervlm.task import Task
from wafervlm.words.section import Words

SCHEMA_VERSION = 1
PRECISIONS = ("int4", "int3", "float32")
Vision = Literal["float32", "int8"]
VISIONS: tuple[Vision, ...] = get_args(Vision)
ACCURACY_LEVELS = (0, 4)
"""What MatMulNBits computes in: 0 the activations' own float32 (exact), 4 int8."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle: its name, sha256 as 64 hex digits, and size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Graph:
    """The graph of the bundle: its file, the names of its input and output, the precision of its
    weights with the group size (None for float32), the accuracy level it is deployed at, what the vision
    tower computes in, and the ONNX opset whose operators it is made of."""

    file: str = "model.onnx"
    input: str = "image"
    output: str = "label_log_probs"
    precision: str = "int4"
    group_size: int | None = None
    accuracy_level: int = 4
    vision: Vision = "float32"
    opset: int = 23

    @property
    def exact(self) -> bool:
        """Whether, as deployed, nothing is rounded to integers but stored weights."""
        return self.accuracy_level == 0 and self.vision == "float32"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself.

    ``created`` is an ISO 8601 time in UTC. Scores are softmax(label log-probabilities / ``temperature``).
    ``verify_tolerance`` is how far the deployed graph's label log-probabilities may lie from the golden
    maps' reference. ``provenance`` holds one table for each stage that made the bundle, ``parity`` the
    figures measured at export, ``citations`` what must be cited with the data behind the model.
    ``words`` says how text is generated, None where the bundle only classifies. ``threshold`` is what a class
    of a multi-label task must reach, and counts for such a task alone. ``write_manifest`` fills ``files``.
    """

    name: str
    created: str
    task: Task
    graph: Graph
    temperature: float
    verify_tolerance: float
    files: tuple[FileEntry, ...] = ()
    provenance: tuple[Mapping[str, Any], ...] = ()
    parity: Mapping[str, float] = field(default_factory=dict)
    citations: tuple[str, ...] = ()
    words: Words | None = None
    threshold: float = 0.5
    schema_version: int = SCHEMA_VERSION

    @property
    def task_digest(self) -> str:
        """The prompt-and-render lock."""
        return self.task.digest

    def to_json(self) -> str:
        """The text of ``manifest.json``. Raises ManifestError for what JSON cannot hold."""
        values = {
            "schema_version": self.schema_version,
            "name": self.name,
            "created": self.created,
            "task": self.task.to_dict(),
            "task_digest": self.task_digest,
            "graph": asdict(self.graph),
            "temperature": self.temperature,
            **({"threshold": self.threshold} if self.task.multi_label else {}),
            "verify_tolerance": self.verify_tolerance,
            "files": [asdict(entry) for entry in self.files],
            "provenance": [dict(stage) for stage in self.provenance],
            "parity": dict(self.parity),
            "citations": list(self.citations),
            **({} if self.words is None else {"words": self.words.to_dict()}),
        }
        try:
            return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise ManifestError(
                f"manifest of bundle {self.name!r} cannot be written as JSON: {error}"
            ) from None

    @classmethod
    def from_json(cls, data: bytes, where: str = "manifest.json") -> Manifest:
        """Read a manifest; ``where`` names it in messages.

        Raises ManifestError (not JSON, too large, unknown or missing key, wrong type or range),
        SchemaVersionError, LockError, and UsageError for the manifest of an engine.
        """
        values = read_json(data, where)
        if "builder" in values and "task" not in values:
            raise UsageError(
                f"{where} is of an engine folder, not of a bundle; name it with --engine (in Python "
                "engine=), and with --bundle the bundle that it was built from"
            )
        version: Any = values.get("schema_version")
        if not is_kind(version, int):
            raise ManifestError(
                f"{where} does not say its schema_version as a whole number; it is not a manifest"
            )
        if version > SCHEMA_VERSION:
            raise SchemaVersionError(
                f"{where} has schema version {version} and this wafervlm reads up to {SCHEMA_VERSION}; "
                "upgrade it with: pip install --upgrade wafervlm"
            )
        if version < 1:
            raise ManifestError(f"{where} has schema version {version}, which never existed")
        return _manifest(values, where)


_MANIFEST_KEYS: dict[str, type] = {
    "schema_version": int,
    "name": str,
    "created": str,
    "task": dict,
    "task_digest": str,
    "graph": dict,
    "temperature": float,
    "verify_tolerance": float,
    "files": list,
    "provenance": list,
    "parity": dict,
    "citations": list,
}
_GRAPH_KEYS: dict[str, type] = {
    "file": str,
    "input": str,
    "output": str,
    "precision": str,
    "group_size": object,
    "accuracy_level": int,
    "vision": str,
    "opset": int,
}
_FILE_KEYS: dict[str, type] = {"path": str, "sha256": str, "size": int}
_TASK_TEXTS = ("name", "prompt", "order", "answer_prefix", "answer_suffix")


def _manifest(values: dict[str, Any], where: str) -> Manifest:
    # Bundles without words do not mention them, and a threshold is for multi-label tasks alone.
    kinds = {**_MANIFEST_KEYS, **({"threshold": float} if _is_multi_label(values) else {})}
    check_table({key: value for key, value in values.items() if key != "words"}, kinds, where)
    threshold = float(values.get("threshold", 0.5))
    check_range(0 < threshold < 1, "threshold", threshold, "between 0 and 1", where)
    check_items(values["provenance"], dict, f"provenance of {where}")
    check_items(values["citations"], str, f"citations of {where}")
    check_items(list(values["parity"].values()), float, f"parity of {where}")
    check_range(values["temperature"] > 0, "temperature", values["temperature"], "greater than 0", where)
    check_range(
        values["verify_tolerance"] >= 0, "verify_tolerance", values["verify_tolerance"], "0 or more", where
    )
    task = _task(values["task"], where)
    if task.digest != values["task_digest"]:
        raise LockError(
            f"the task in {where} has digest {task.digest[:12]}... but the bundle is locked to "
            f"{values['task_digest'][:12]}...: its prompt, labels or rendering were changed after export; "
            "export the bundle again for this task"
        )
    kept = {key: values[key] for key in ("schema_version", "name", "created", "parity")}
    return Manifest(
        **kept,
        task=task,
        graph=_graph(values["graph"], where),
        temperature=float(values["temperature"]),
        verify_tolerance=float(values["verify_tolerance"]),
        files=tuple(file_entry(entry, where) for entry in values["files"]),
        provenance=tuple(values["provenance"]),
        citations=tuple(values["citations"]),
        threshold=threshold,
        words=None if "words" not in values else Words.from_dict(values["words"], where),
    )


def _is_multi_label(values: dict[str, Any]) -> bool:
    return isinstance(values.get("task"), dict) and values["task"].get("kind") == "multi-label"


def _graph(values: dict[str, Any], where: str) -> Graph:
    # Bundles from before there was a choice do not say these.
    values = {"vision": "float32", "opset": 23, **values}
    check_table(values, _GRAPH_KEYS, f"graph of {where}")
    graph = Graph(**values)
    check_range(graph.precision in PRECISIONS, "precision", graph.precision, f"one of {PRECISIONS}", where)
    level = graph.accuracy_level
    check_range(level in ACCURACY_LEVELS, "accuracy_level", level, f"one of {ACCURACY_LEVELS}", where)
    check_range(graph.vision in VISIONS, "vision", graph.vision, f"one of {VISIONS}", where)
    check_range(graph.opset > 0, "opset", graph.opset, "greater than 0", where)
    group = graph.group_size
    whole = group is not None and is_kind(group, int) and group > 0
    fits = group is None if graph.precision == "float32" else whole
    check_range(fits, "group_size", group, "a number of weights, or null for float32", where)
    return graph


def file_entry(values: object, where: str) -> FileEntry:
    if not isinstance(values, dict):
        raise ManifestError(f"files of {where} holds {values!r} where it must hold tables")
    check_table(values, _FILE_KEYS, f"files of {where}")
    entry = FileEntry(**values)
    check_range(entry.size >= 0, "size", entry.size, "0 or more", where)
    check_range(_SHA256.fullmatch(entry.sha256) is not None, "sha256", entry.sha256, "64 hex digits", where)
    return entry


def _task(values: dict[str, Any], where: str) -> Task:
    check_items([values.get(key, "") for key in _TASK_TEXTS], str, f"texts of the task in {where}")
    labels, spellings = values.get("labels"), values.get("spellings", {})
    if not isinstance(labels, list) or not isinstance(spellings, dict):
        raise ManifestError(f"the task in {where} must hold a list of labels and a table of spellings")
    check_items([*labels, *spellings.values()], str, f"labels and spellings of the task in {where}")
    if not isinstance(values.get("system"), (str, type(None))):
        raise ManifestError(f"system of the task in {where} must be text or null")
    try:
        task = Task.from_dict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ManifestError(f"the task in {where} cannot be read: {error}") from None
    if json.loads(json.dumps(task.to_dict())) != values:
        raise ManifestError(
            f"the task in {where} is not written in full, as an export writes it; export it again"
        )
    return task
