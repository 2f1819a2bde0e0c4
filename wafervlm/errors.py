"""Every error and warning that wafervlm raises on purpose.

::

    WaferVLMError                 anything below; ``exit_code`` is what the command line returns
    +-- UsageError                2  an argument or a setting that cannot be meant
    |   +-- ConfigError              a configuration file: unknown key, wrong type, out of range
    +-- InputError                1  something to be read is not what it should be
    |   +-- WaferMapError            a die grid (also a ValueError)
    |   +-- ImageError               an image file or array (also a ValueError)
    |   +-- FileFormatError          any other file that a reader refuses
    |   +-- DatasetError             a dataset folder: missing image, unknown label, empty class
    |   |   +-- LeakError            a lot or a map that is in two splits
    |   +-- CheckpointError          a model folder: architecture, missing or misshapen tensor
    +-- TaskError                 1  a task whose labels, prompt or render cannot work
    |   +-- LockError             3  a task, graph or bundle other than what the bundle was locked to
    +-- IntegrityError            3  an artefact that is not as it was written
    |   +-- ManifestError            manifest missing, not JSON, too large, incomplete
    |   +-- SchemaVersionError       written by a newer wafervlm
    |   +-- DigestError              a file was changed or truncated
    |   +-- FileSetError             a file is missing, extra, or leaves the folder
    |   +-- VerificationError        the golden maps' scores do not come out on this machine
    +-- SetupError                4  this machine lacks something
    |   +-- MissingDependencyError   a distribution is not installed; says which to install
    |   +-- ProviderError            a runtime or an execution provider is not there
    |   |   +-- DeviceLost           the GPU stopped answering
    |   +-- WorkshopError            a workshop command was asked of a bare wheel
    |   +-- ResourceError            memory or disk ran out; says what to lower
    +-- GateError                 5  a figure is below what the stage must reach
    +-- PredictionTimeout         1  a call took longer than its ``timeout`` (also a TimeoutError)
    +-- ClosedError               1  the model was closed

    WaferVLMWarning               something works but deserves a look (a UserWarning)
"""

from __future__ import annotations


class WaferVLMError(Exception):
    """Base of every error that wafervlm raises on purpose."""

    exit_code = 1


class UsageError(WaferVLMError):
    """An argument or a setting that cannot be meant."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file holds an unknown key, a wrong type or a value out of range."""


class InputError(WaferVLMError):
    """Something to be read is not what it should be."""


class WaferMapError(InputError, ValueError):
    """A die grid is refused."""


class ImageError(InputError, ValueError):
    """An image is refused."""


class FileFormatError(InputError, ValueError):
    """A file is not of a format that a reader accepts."""


class DatasetError(InputError):
    """A dataset folder is incomplete or contradicts itself."""


class LeakError(DatasetError):
    """A lot or a map is in two splits."""


class CheckpointError(InputError):
    """A model folder cannot be used."""


class TaskError(WaferVLMError, ValueError):
    """A task cannot work as it is written."""


class LockError(TaskError):
    """A task, a graph or another bundle differs from what the bundle was locked to."""

    exit_code = 3


class IntegrityError(WaferVLMError):
    """An artefact is not as it was written."""

    exit_code = 3


class ManifestError(IntegrityError):
    """The manifest is missing, not JSON, too large or incomplete."""


class SchemaVersionError(IntegrityError):
    """The artefact was written by a newer wafervlm."""


class DigestError(IntegrityError):
    """A file was changed or truncated."""


class FileSetError(IntegrityError):
    """A file of the artefact is missing, is extra, or leaves the folder."""


class VerificationError(IntegrityError):
    """The golden maps' scores do not come out on this machine."""


class SetupError(WaferVLMError):
    """This machine lacks something."""

    exit_code = 4


class MissingDependencyError(SetupError, ImportError):
    """A distribution is not installed; the message says which to install."""


class ProviderError(SetupError):
    """A runtime or an execution provider is not there."""


class DeviceLost(ProviderError):
    """The GPU stopped answering; only a new process can use it again."""


class WorkshopError(SetupError):
    """A workshop command was asked of a bare wheel."""


class ResourceError(SetupError):
    """Memory or disk ran out; the message says what to lower."""


class GateError(WaferVLMError):
    """A figure is below what the stage must reach."""

    exit_code = 5


class PredictionTimeout(WaferVLMError, TimeoutError):
    """A call took longer than its ``timeout``."""


class ClosedError(WaferVLMError):
    """The model was closed."""


class WaferVLMWarning(UserWarning):
    """Something works but deserves a look."""


def import_fault(package: str, error: Exception) -> str:
    """What is the matter with ``package``, whose import raised ``error``: not installed, or broken."""
    absent = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package
    return "is not installed" if absent else f"is installed and cannot be used ({error})"
