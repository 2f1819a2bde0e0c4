"""The work folder of a training, ``<output>.partial``: one process works in it, and it is of one training."""

from __future__ import annotations

import fcntl
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from train.artefact import Provenance, claim
from train.checkpoints import last_checkpoint
from wafervlm.errors import ResourceError, UsageError

CHECKPOINTS = "checkpoints"


def partial_of(out: Path) -> Path:
    """Where work in progress on ``out`` lies."""
    return out.with_name(out.name + ".partial")


def claimed(partial: Path, provenance: Provenance) -> Path | None:
    """Make ``partial`` the work folder of this training; return the checkpoint that it goes on from."""
    resume = last_checkpoint(partial / CHECKPOINTS)
    claim(partial, provenance, begun=resume is not None)
    return resume


@contextmanager
def alone(partial: Path) -> Iterator[None]:
    """Keep other processes out of ``partial``. Raises UsageError where one is at work there."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / "lock").open("w") as file:
        try:
            # The system drops this lock when the process dies, however it dies.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is training in {partial}; wait for it, or stop it") from None
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own progress and advice off the terminal."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers_logging.set_verbosity(before)
            transformers_logging.enable_progress_bar()


@contextmanager
def memory_explained(what_to_lower: Callable[[], str]) -> Iterator[None]:
    """Turn an error of memory into a ResourceError that says ``what_to_lower``."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        signs = ("out of memory", "allocate memory")
        if isinstance(error, RuntimeError) and not any(sign in str(error).lower() for sign in signs):
            raise
        raise ResourceError(what_to_lower()) from error
