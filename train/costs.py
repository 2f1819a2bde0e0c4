"""What a stage will take, stated beforehand: memory, disk and time, and how fast this machine is.

A stage counts its arithmetic and the bytes that it handles; ``measure_speed`` says, in about three seconds,
how many of each this machine does in a second at the moment. What is counted follows from the shape of the
model; the constants in between were measured, and each says on what.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from train.encoding import prompt_text
from train.inventory import Inventory
from train.loading import load_processor
from train.tree import label_tree
from wafervlm.task import Task

PROBE_SECONDS = 0.7
# A product of the shape that a 4B's layers have, on the tokens of one map.
ROWS, INNER, OUTER = 160, 2560, 4864
BLOCK = 1 << 24
# Of Python with torch, transformers and the stage's libraries, before any weight is read.
PROCESS_BYTES = 450_000_000
# Of the largest unit in float32, while it is read and then runs; and numbers that each token keeps during a
# pass, as multiples of the widest layer. Measured on both families at 2 layers of the real width.
UNIT_COPIES, KEPT_WIDTHS = 2.2, 6


@dataclass(frozen=True, slots=True)
class Speed:
    """Of this machine, now: ``products``, float32 operations per second in matrix products, ``narrow``, the
    same in bfloat16, ``elements``, numbers per second that one pass over memory converts, and ``digests``,
    bytes per second hashed."""

    products: float
    narrow: float
    elements: float
    digests: float


@dataclass(frozen=True, slots=True)
class Work:
    """What a part of a stage does: operations in matrix ``products`` in float32, in ``narrow`` ones in
    bfloat16, ``elements`` converted or copied, bytes in ``digests``, and ``fixed`` seconds."""

    products: float = 0.0
    narrow: float = 0.0
    elements: float = 0.0
    digests: float = 0.0
    fixed: float = 0.0

    def seconds(self, speed: Speed) -> float:
        """How long it takes at ``speed``."""
        return (
            self.products / speed.products
            + self.narrow / speed.narrow
            + self.elements / speed.elements
            + self.digests / speed.digests
            + self.fixed
        )


@dataclass(frozen=True)
class Cost:
    """``memory`` is the largest resident size in bytes, ``disk`` the bytes that are written and ``parts`` the
    work of each part by name."""

    memory: float
    disk: float
    parts: Mapping[str, Work] = field(default_factory=dict)

    def figures(self, out: Path, speed: Speed) -> dict[str, object]:
        """Plain values for people: GB, minutes, and what this machine has."""
        times = {name: work.seconds(speed) for name, work in self.parts.items()}
        return {
            "memory_gb": round(self.memory / 1e9, 2),
            "memory_available_gb": round(psutil.virtual_memory().available / 1e9, 2),
            "disk_gb": round(self.disk / 1e9, 2),
            "disk_free_gb": round(free_disk(out) / 1e9, 2),
            "seconds": round(sum(times.values()), 1),
            "seconds_of": {name: round(seconds, 1) for name, seconds in times.items()},
        }


def measure_speed() -> Speed:
    """Measure this machine as it is: with the threads that torch uses, beside whatever else runs."""
    left, right = torch.rand(ROWS, INNER), torch.rand(INNER, OUTER)
    short, broad = left.bfloat16(), right.bfloat16()
    levels, block = torch.randint(-8, 8, (BLOCK,), dtype=torch.int8), bytes(BLOCK)
    return Speed(
        products=2 * ROWS * INNER * OUTER * _rate(lambda: left @ right),
        narrow=2 * ROWS * INNER * OUTER * _rate(lambda: short @ broad),
        elements=BLOCK * _rate(levels.float),
        digests=BLOCK * _rate(lambda: hashlib.sha256(block).digest()),
    )


def free_disk(out: Path) -> int:
    """Bytes free where ``out`` would be written."""
    folder = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(folder).free


def _rate(call: Callable[[], object]) -> float:
    """Calls per second, over PROBE_SECONDS, after one that does not count."""
    call()
    begun, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < PROBE_SECONDS:
        call()
        calls += 1
    return max(calls, 1) / spent


def folder_bytes(*folders: Path) -> int:
    """Bytes of all files in ``folders``, which a stage digests to know its inputs."""
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def pass_products(inventory: Inventory, task: Task) -> float:
    """Float32 operations of one forward pass over one map's prompt, with the label tree after it."""
    return 2.0 * inventory.text * prompt_tokens(inventory, task) + vision_products(inventory, task)


def streamed_bytes(inventory: Inventory, task: Task, maps: int) -> float:
    """Memory of one pass of ``maps`` maps at once through a model with one unit in memory."""
    text, vision = inventory.config.get_text_config(), inventory.config.vision_config
    patches = (task.render.height // vision.patch_size) * (task.render.width // vision.patch_size)
    widest = max(prompt_tokens(inventory, task) * text.intermediate_size, patches * vision.intermediate_size)
    return 4.0 * (UNIT_COPIES * inventory.largest + KEPT_WIDTHS * maps * float(widest))


def vision_products(inventory: Inventory, task: Task) -> float:
    """Float32 operations of the vision tower on one map: its blocks see each patch, its mergers each merged
    one."""
    vision = inventory.config.vision_config
    patches = (task.render.height // vision.patch_size) * (task.render.width // vision.patch_size)
    merged = patches / vision.spatial_merge_size**2
    rest = inventory.vision - inventory.vision_blocks
    return 2.0 * float(inventory.vision_blocks * patches + rest * merged)


def prompt_tokens(inventory: Inventory, task: Task) -> int:
    """Tokens of one map's prompt: text, image, and the label tree."""
    processor = load_processor(inventory.path)
    vision = inventory.config.vision_config
    unit = int(vision.patch_size * vision.spatial_merge_size)
    tree = label_tree(processor.tokenizer, task)
    text = prompt_text(processor, task) + task.answer_prefix
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    image = (task.render.height // unit) * (task.render.width // unit)
    return len(ids) - 1 + image + len(tree.fed)
