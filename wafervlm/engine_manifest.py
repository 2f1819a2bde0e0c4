"""What an engine says of itself, and reading it strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from wafervlm.engine_words import (
    WordsEngines,
    WordsVerification,
    words_engines,
    words_verification,
)
from wafervlm.errors import ManifestError, SchemaVersionError, UsageError
from wafervlm.manifest import FileEntry, file_entry
from wafervlm.strict import check_range, check_table

ENGINE_SCHEMA = 2
"""Of engines with words; those without are written as before there were any, in schema 1."""
ENGINE_FILE = "model.engine"
BUILDERS = ("tensorrt_rtx", "tensorrt")
ENGINE_PRECISIONS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an engine runs: what its answers may depend on besides the engine itself."""

    gpu: str
    compute_capability: str
    driver: str
    builder: str
    builder_version: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The golden maps' scores as an engine gave them: ``engine`` is the sha256 of its file, ``place`` where
    it ran, and the differences are to the checkpoint's label log-probabilities and probabilities. ``words``
    is what became of the golden texts, None for an engine without words."""

    engine: str
    place: Place
    maps: int
    max_abs_difference: float
    max_probability_difference: float
    label_agreement: float
    tolerance: float
    created: str
    words: WordsVerification | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return _without_none(asdict(self), "words")


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """What an engine says of itself.

    ``bundle`` and ``task_digest`` name what it was built from; ``builder`` is the package that built it and
    alone can run it, in exactly ``builder_version``. ``gpu`` and ``driver`` (the CUDA version that it
    serves) are None for an engine that was built ahead of time. ``weights`` is the bundle's precision,
    ``precision`` what the engine computes in. It takes ``min_batch`` to ``max_batch`` images at once.
    ``tolerance`` is how far label log-probabilities may lie from the golden maps' reference.
    ``verification`` is what came out where it was built, None where it was not run there. ``words`` are the
    engines that generate text, None where there are none.
    """

    bundle: str
    bundle_name: str
    task_digest: str
    created: str
    builder: str
    builder_version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    weights: str
    max_batch: int
    tolerance: float
    file: FileEntry
    gpu: str | None = None
    driver: str | None = None
    verification: Verification | None = None
    min_batch: int = 1
    words: WordsEngines | None = None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files of the folder that hold an engine."""
        return (self.file,) if self.words is None else (self.file, self.words.features, self.words.step)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = _without_none(asdict(self), "words")
        if self.verification is not None:
            values["verification"] = self.verification.to_dict()
        return {"schema_version": 1 if self.words is None else ENGINE_SCHEMA, **values}

    def made_like(self, other: EngineManifest) -> bool:
        """Whether ``other`` was built from the same bundle by the same builder for the same ends, and has
        words where these are asked for."""
        return not self.differences(other)

    def differences(self, other: EngineManifest) -> tuple[str, ...]:
        """In what ``other`` was built otherwise than ``self`` asks for; nothing where it was not."""
        ignored = ("created", "file", "verification", "driver", "gpu", "words")
        mine, theirs = ({f.name: getattr(each, f.name) for f in fields(each)} for each in (self, other))
        found = [name for name in mine if name not in ignored and mine[name] != theirs[name]]
        if self.words is not None and (other.words is None or not self.words.built_like(other.words)):
            found.append("words")
        return tuple(found)


_KEYS: dict[str, type] = {
    "schema_version": int,
    "bundle": str,
    "bundle_name": str,
    "task_digest": str,
    "created": str,
    "builder": str,
    "builder_version": str,
    "compute_capabilities": list,
    "precision": str,
    "weights": str,
    "min_batch": int,
    "max_batch": int,
    "tolerance": float,
    "file": dict,
    "gpu": object,
    "driver": object,
    "verification": object,
}
_VERIFICATION_KEYS: dict[str, type] = {
    "engine": str,
    "place": dict,
    "maps": int,
    "max_abs_difference": float,
    "max_probability_difference": float,
    "label_agreement": float,
    "tolerance": float,
    "created": str,
}
_PLACE_KEYS: dict[str, type] = dict.fromkeys(
    ("gpu", "compute_capability", "driver", "builder", "builder_version"), str
)


def engine_manifest(values: dict[str, Any], where: str) -> EngineManifest:
    """The manifest that ``values`` hold; ``where`` names it in messages. Raises ManifestError,
    SchemaVersionError, and UsageError for that of a bundle."""
    if "task" in values and "builder" not in values:
        raise UsageError(
            f"{where} is of a bundle folder, not of an engine; name it with --bundle (in Python bundle=), "
            "and with --engine a folder that wafervlm engine built"
        )
    version = values.get("schema_version")
    if isinstance(version, int) and version > ENGINE_SCHEMA:
        raise SchemaVersionError(
            f"{where} has schema version {version} and this wafervlm reads up to {ENGINE_SCHEMA}; "
            "upgrade it with: pip install --upgrade wafervlm"
        )
    words = values.get("words")
    values = {key: value for key, value in values.items() if key != "words"}
    check_table(values, _KEYS, where)
    file = file_entry(values["file"], where)
    checks = {
        "schema_version": (values["schema_version"] >= 1, "1 or more"),
        "file": (file.path == ENGINE_FILE, f"named {ENGINE_FILE}"),
        "builder": (values["builder"] in BUILDERS, f"one of {BUILDERS}"),
        "precision": (values["precision"] in ENGINE_PRECISIONS, f"one of {ENGINE_PRECISIONS}"),
        "min_batch": (values["min_batch"] >= 1, "1 or more"),
        "max_batch": (values["max_batch"] >= values["min_batch"], f"{values['min_batch']} or more"),
        "tolerance": (values["tolerance"] > 0, "greater than 0"),
        "compute_capabilities": (
            bool(values["compute_capabilities"])
            and all(isinstance(item, str) for item in values["compute_capabilities"]),
            'a list such as ["8.6", "8.9"]',
        ),
    }
    checks |= {
        key: (values[key] is None or isinstance(values[key], str), "text or null")
        for key in ("gpu", "driver")
    }
    for key, (good, should) in checks.items():
        check_range(good, key, values[key], should, where)
    verification = values["verification"]
    changes: Mapping[str, Any] = {
        "file": file,
        "compute_capabilities": tuple(values["compute_capabilities"]),
        "verification": None if verification is None else verification_of(verification, where),
        "words": None if words is None else words_engines(words, where),
    }
    given = {key: value for key, value in values.items() if key != "schema_version"}
    return EngineManifest(**{**given, **changes})


def verification_of(values: Any, where: str) -> Verification:
    """The verification that ``values`` hold. Raises ManifestError."""
    if not isinstance(values, dict):
        raise ManifestError(f"the verification in {where} must be a table")
    words = values.get("words")
    values = {key: value for key, value in values.items() if key != "words"}
    check_table(values, _VERIFICATION_KEYS, f"the verification in {where}")
    check_table(values["place"], _PLACE_KEYS, f"the place in {where}")
    changes: Mapping[str, Any] = {
        "place": Place(**values["place"]),
        "words": None if words is None else words_verification(words, f"the verification in {where}"),
    }
    return Verification(**{**values, **changes})


def _without_none(values: dict[str, Any], key: str) -> dict[str, Any]:
    """``values`` without ``key`` where it is None: what was written before there was one must be readable by
    programs from then."""
    return {name: value for name, value in values.items() if name != key or value is not None}
