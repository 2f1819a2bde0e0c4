"""Wafer-map classification by a small vision-language model, on the inspection tool itself.

::

    import wafervlm
    model = wafervlm.load()
    answer = model.predict(dies)      # a WaferMap, an (H, W) array of 0, 1 and 2, or a path
    answer.label, answer.confidence

What is listed in ``__all__`` is public; everything else may change.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from wafervlm.errors import (
    CheckpointError,
    ClosedError,
    ConfigError,
    DatasetError,
    DeviceLost,
    DigestError,
    FileFormatError,
    FileSetError,
    GateError,
    ImageError,
    InputError,
    IntegrityError,
    LeakError,
    LockError,
    ManifestError,
    MissingDependencyError,
    PredictionTimeout,
    ProviderError,
    ResourceError,
    SchemaVersionError,
    SetupError,
    TaskError,
    UsageError,
    VerificationError,
    WaferMapError,
    WaferVLMError,
    WaferVLMWarning,
    WorkshopError,
)

if TYPE_CHECKING:
    from wafervlm.loading import load
    from wafervlm.model import WaferVLM
    from wafervlm.prediction import Prediction
    from wafervlm.task import Task
    from wafervlm.wafermap import WaferMap
    from wafervlm.words.description import Description

__all__ = [
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

# Imported at first use, so that the command line answers --help without numpy.
_HOMES = {
    "Description": "wafervlm.words.description",
    "Prediction": "wafervlm.prediction",
    "Task": "wafervlm.task",
    "WaferMap": "wafervlm.wafermap",
    "WaferVLM": "wafervlm.model",
    "load": "wafervlm.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wafervlm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
