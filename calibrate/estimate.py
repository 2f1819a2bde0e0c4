"""What a calibration will take: memory, disk and time, from the shape of the model and the maps it sees."""

from __future__ import annotations

from pathlib import Path

from calibrate.stage import CalibrateSettings, draw
from train.costs import PROCESS_BYTES, Cost, Work, folder_bytes, pass_products, prompt_tokens, vision_products
from train.dataset import dataset_task
from train.inventory import Inventory, take_inventory
from wafervlm.errors import CheckpointError

# A decoder layer is run as far as each of its four sets of linear layers, and once whole: in forward passes.
LAYER_PASSES = 3.4
# Forward and backward, and the pass that brings the maps to the first layer:
INFLUENCE_PASSES = 3.0
# Searching each group's range among 41 candidates and rounding, most of what a calibration takes on a CPU:
# passes over a weight, and elements for each input column; rounding to nearest: passes over a weight.
# Measured on the widths of Qwen3-VL-4B, on two cores.
SEARCH_PASSES, COLUMN_ELEMENTS, NEAREST_PASSES = 405.0, 4.1e6, 8.0
# The error of both, for N outputs and K inputs: 2 N K^2 operations each.
ERRORS = 2.0
# The replay is compared with the full forward, three times on one batch: in forward passes.
CHECK_PASSES = 6.0
READ_PASSES, WRITE_PASSES = 2.0, 8.0
# Of the largest Hessian, while it is put in order, damped, inverted and decomposed:
HESSIAN_COPIES = 8
ANSWER_TOKENS = 4


def estimate(source: Path, dataset: Path, settings: CalibrateSettings) -> Cost:
    """The cost of ``calibrate``. Raises what it would raise of checkpoint and dataset."""
    inventory, task = take_inventory(source), dataset_task(dataset)
    if inventory.bits is not None:
        raise CheckpointError(f"{source} is quantized already; give the merged checkpoint")
    samples, checks = draw(dataset, settings)
    one = pass_products(inventory, task)
    tokens = len(samples) * (prompt_tokens(inventory, task) + ANSWER_TOKENS)
    linear = inventory.layer_linear * inventory.layers
    weigh = INFLUENCE_PASSES if settings.weigh == "answers" else 0.0
    hessians = sum(2.0 * tokens * size**2 for size in _inputs(inventory)) * inventory.layers
    judged = (
        ERRORS * sum(2.0 * outputs * inputs**2 for inputs, outputs in _sets(inventory)) * inventory.layers
    )
    scored = Work(products=len(checks) * one, elements=READ_PASSES * inventory.parameters)
    parts = {
        "start": Work(digests=inventory.stored_bytes + folder_bytes(dataset), fixed=6.0),
        "score full precision": scored,
        "score round-to-nearest": Work(
            products=scored.products, elements=scored.elements + NEAREST_PASSES * linear
        ),
        "weigh tokens": Work(products=weigh * len(samples) * one),
        "calibrate layers": Work(
            products=CHECK_PASSES * min(settings.batch, len(samples)) * one
            + len(samples) * vision_products(inventory, task)
            + LAYER_PASSES * 2.0 * tokens * linear
            + hessians
            + judged,
            elements=SEARCH_PASSES * linear + COLUMN_ELEMENTS * sum(_inputs(inventory)) * inventory.layers,
        ),
        "score quantized": scored,
        "write": Work(elements=WRITE_PASSES * linear + inventory.parameters),
    }
    disk = linear * (0.5 + 2.0 / settings.scheme.group) * settings.scheme.bits / 4
    kept = linear * 1.1  # the layers that are finished, beside the output until it stands
    other = 2.0 * (inventory.parameters - linear)
    return Cost(_memory(inventory, settings, tokens), disk + kept + other, parts)


def _sets(inventory: Inventory) -> list[tuple[int, int]]:
    """(inputs, outputs) of the sets of linear layers of a decoder layer that read one tensor."""
    text = inventory.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    width, inner, attended = text.hidden_size, text.intermediate_size, text.num_attention_heads * head
    return [
        (width, attended + 2 * text.num_key_value_heads * head),
        (attended, width),
        (width, 2 * inner),
        (inner, width),
    ]


def _inputs(inventory: Inventory) -> list[int]:
    return [inputs for inputs, _ in _sets(inventory)]


def _memory(inventory: Inventory, settings: CalibrateSettings, tokens: int) -> float:
    """Of the host, or of the GPU where the model is on one: the same, but for an offloaded model."""
    number = 4 if settings.dtype == "float32" else 2
    model = number * (inventory.parameters if settings.offload != "disk" else 2 * inventory.largest)
    width = int(inventory.config.get_text_config().hidden_size)
    hessian = 4.0 * max(_inputs(inventory)) ** 2 * HESSIAN_COPIES
    hessian *= 1 if settings.scheme.precision == "float32" else 2
    levels = inventory.layer_linear * inventory.layers * 1.02
    return PROCESS_BYTES + model + 4.0 * tokens * width + hessian + levels
