"""The processes that train together, one for each GPU, as ``accelerate launch`` or ``torchrun`` starts them.

Each process is told its rank by the launcher, in environment variables. What is read, decided or written
once is so by the main process, rank 0; the others are given what it found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's place among them, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that speaks and writes."""
    return rank() == 0


@contextmanager
def together(device: str) -> Iterator[None]:
    """Join the processes of this training, over gloo on the CPU and NCCL on GPUs, each on a GPU of its own;
    part when the block ends well. Nothing is done for one process alone."""
    if count() == 1:
        yield
        return
    from accelerate import PartialState

    PartialState(cpu=device == "cpu")
    yield
    # After an error the others may be waiting for this one: the launcher ends them, a farewell would hang.
    PartialState().destroy_process_group()


def wait() -> None:
    """Go on when every process has come here."""
    if count() > 1:
        torch.distributed.barrier()


def of_main(find: Callable[[], T]) -> T:
    """What ``find`` gives the main process, for every process."""
    if count() == 1:
        return find()
    found = [find() if is_main() else None]
    torch.distributed.broadcast_object_list(found, src=0)
    value: T = found[0]  # type: ignore[assignment]
    return value


def summed(number: torch.Tensor) -> torch.Tensor:
    """The sum of ``number`` over the processes."""
    if count() > 1:
        number = number.clone()
        torch.distributed.all_reduce(number)
    return number


def gathered(value: T) -> list[T]:
    """The ``value`` of every process, by rank."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values
