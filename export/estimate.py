"""What an export will take: memory, disk and time, from the shape of the model and the maps it runs."""

from __future__ import annotations

from dataclasses import dataclass

from export.sequence import plan_sequence
from export.stage import ExportConfig, golden_count, tune_samples
from train.costs import PROCESS_BYTES, Cost, Work, streamed_bytes, vision_products
from train.inventory import Inventory, take_inventory
from train.loading import load_processor, read_config
from train.tree import label_tree

# Measured on 4-bit models of the shape of Qwen3-VL-4B, of 2 and of 36 layers, on two cores.
# Passes over a weight to read, unpack, transpose, join, pack and write it:
BUILD_PASSES = 6.5
# ... and to read it and multiply it out for a reference:
READ_PASSES = 3.0
# A runtime opens a graph by reading, unpacking and packing each weight again:
OPEN_PASSES = 2.0
# What a product takes in ONNX Runtime of its time in torch: in float32, and with 8-bit activations.
EXACT_SHARE, DEPLOYED_SHARE = 0.4, 0.2
IMPORT_SECONDS, SESSION_SECONDS = 6.0, 1.0
SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Pass:
    """Float32 operations of one image in one pass: of the text core over the whole ``prompt``, over the
    tokens that the ``graph`` computes, and of the ``vision`` tower."""

    prompt: float
    graph: float
    vision: float


def estimate(config: ExportConfig) -> Cost:
    """The cost of ``export`` with ``config``. Raises what it would raise of checkpoint, task and maps."""
    inventory = take_inventory(config.checkpoint)
    golden, tune = golden_count(config, inventory.large), len(tune_samples(config))
    one = _pass(config, inventory)
    run = (one.graph + one.vision) * EXACT_SHARE
    exact_maps = golden + (tune if _is_exact(config, inventory) else 0)
    labels = len(config.task.labels)
    parts = {
        "start": Work(fixed=IMPORT_SECONDS, digests=inventory.stored_bytes),
        "reference": Work(
            products=golden * (one.prompt + one.vision) * (1 if inventory.large else labels),
            elements=READ_PASSES * inventory.parameters,
        ),
        "graph": Work(
            products=one.prompt - one.graph,
            elements=BUILD_PASSES * (inventory.text + inventory.vision),
            digests=3 * graph_bytes(config, inventory),
        ),
        "exact": Work(
            products=exact_maps * run,
            elements=OPEN_PASSES * (inventory.text + inventory.vision),
            fixed=SESSION_SECONDS,
        ),
    }
    if not _is_exact(config, inventory):
        share = DEPLOYED_SHARE if inventory.bits and config.accuracy_level else EXACT_SHARE
        deployed = one.graph * share + one.vision * EXACT_SHARE
        parts["deployed"] = Work(
            products=(golden + tune) * deployed,
            elements=OPEN_PASSES * (inventory.text + inventory.vision),
            fixed=SESSION_SECONDS,
        )
    return Cost(_memory(config, inventory, golden), graph_bytes(config, inventory), parts)


def graph_bytes(config: ExportConfig, inventory: Inventory) -> float:
    """Bytes of the bundle's weights: of the embeddings only the few rows of this task go in, unless the
    bundle generates text."""
    linear = inventory.layer_linear * inventory.layers
    other = 2.0 * (inventory.text - linear) + (1 if config.vision == "int8" else 2) * inventory.vision
    if config.words:
        other += 2.0 * inventory.embeddings
    if inventory.bits is None:
        return 2.0 * linear + other
    return linear * (0.5 + SCALE_BYTES / _group(inventory)) + other


def _pass(config: ExportConfig, inventory: Inventory) -> _Pass:
    tokenizer = load_processor(config.checkpoint).tokenizer
    sequence = plan_sequence(tokenizer, config.task, label_tree(tokenizer, config.task), inventory.config)
    each = 2.0 * inventory.layer_linear * inventory.layers
    tokens = len(sequence.before) + sequence.length
    return _Pass(
        prompt=each * tokens,
        graph=each * sequence.length,
        vision=vision_products(inventory, config.task),
    )


def _memory(config: ExportConfig, inventory: Inventory, golden: int) -> float:
    if inventory.large:
        reference = streamed_bytes(inventory, config.task, golden)
    else:
        reference = 2.0 * inventory.float32_bytes
    # A session holds what is stored, what it unpacked of it, and the vision tower in float32.
    session = graph_bytes(config, inventory) + 4.0 * inventory.vision + _unpacked(inventory)
    return PROCESS_BYTES + max(reference, session)


def _unpacked(inventory: Inventory) -> float:
    linear = inventory.layer_linear * inventory.layers
    return 4.0 * linear if inventory.bits is None else 0.25 * linear


def _is_exact(config: ExportConfig, inventory: Inventory) -> bool:
    return config.vision == "float32" and (inventory.bits is None or config.accuracy_level == 0)


def _group(inventory: Inventory) -> int:
    return int(read_config(inventory.path)["quantization_config"].get("group_size", 128))
