"""What a merge will take: memory, disk and time, from the shape of the base and the maps of the gates."""

from __future__ import annotations

from pathlib import Path

from train.costs import PROCESS_BYTES, Cost, Work, folder_bytes, pass_products, streamed_bytes
from train.dataset import dataset_task
from train.inventory import Inventory, take_inventory
from train.loading import DTYPES
from train.merge import MAPS, STREAMED_MAPS, MergeSettings, gate_samples, is_streamed
from wafervlm.task import Task

# Measured on a model of the shape of Qwen3-VL-4B with 2 layers, on two cores. Passes over a weight to read,
# convert and place it, in each of the three scorings, and to merge and write:
READ_PASSES, WRITE_PASSES = 2.0, 1.5
_BYTES = dict(zip(DTYPES, (4, 2, 2), strict=True))


def estimate(base: Path, adapter: Path, dataset: Path, settings: MergeSettings) -> Cost:
    """The cost of ``merge``. Raises what it would raise of the base and the dataset."""
    inventory, streamed = take_inventory(base), is_streamed(base, settings)
    task = dataset_task(dataset)
    maps = len(gate_samples(dataset, settings.maps or (STREAMED_MAPS if streamed else MAPS)))
    products = maps * pass_products(inventory, task)
    disk = _BYTES[settings.dtype] * inventory.parameters
    last = {"products" if settings.dtype == "float32" else "narrow": products}
    parts = {
        "start": Work(digests=inventory.stored_bytes + folder_bytes(adapter, dataset), fixed=6.0),
        "score base and adapter": Work(products=products, elements=READ_PASSES * inventory.parameters),
        "score merged": Work(products=products, elements=READ_PASSES * inventory.parameters),
        "write": Work(elements=WRITE_PASSES * inventory.parameters),
        "score as written": Work(**last, elements=READ_PASSES * inventory.parameters),
    }
    return Cost(_memory(inventory, task, maps, streamed), disk, parts)


def _memory(inventory: Inventory, task: Task, maps: int, streamed: bool) -> float:
    if not streamed:
        # The adapted model, and while it is cast its copy.
        return PROCESS_BYTES + 1.6 * inventory.float32_bytes
    return PROCESS_BYTES + streamed_bytes(inventory, task, maps)
