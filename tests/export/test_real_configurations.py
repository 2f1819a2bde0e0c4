"""The static graph at the families' real widths, with their own tokenizers and chat templates.

Random weights and few layers: against transformers' scores, label by label. Slow: 4B and 7B are wide.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from benchmarks.random_checkpoint import RandomSettings, write_random
from calibrate.gptq import Scheme, round_to_nearest
from calibrate.multiplied import MultipliedOut, load_reference_streamed
from calibrate.pack import write_quantized
from export.external import WeightFile
from export.stage import build_model
from export.weights import Weights
from tests.conftest import data_folder
from tests.export.models import random_images, run
from train.loading import checkpoint_family, read_config
from train.scorer import label_log_probs
from train.streamed import RowHead, Stored, load_streamed
from train.synthetic import wafers
from train.tree import LabelTree, label_tree
from wafervlm.render import RenderSpec, render
from wafervlm.task import WAFER_DEFECTS, Order, Task

logger = logging.getLogger(__name__)

# By family: the folder of the real files, the side of its images in pixels, and how deep it is cut. The cut
# keeps windowed blocks beside one that sees the whole image, and DeepStack on both decoder layers.
REAL: dict[str, tuple[str, int, dict[str, Any]]] = {
    "qwen3_vl": ("qwen3-vl-4b", 256, {"depth": 3, "deepstack_visual_indexes": [0, 1]}),
    "qwen2_5_vl": ("qwen2.5-vl-7b", 252, {"depth": 3, "fullatt_block_indexes": [1]}),
}
TEXT_LAYERS = 2
TOLERANCE = 1e-3
SCHEME = Scheme(group=128)


@pytest.fixture(scope="module")
def folder(family: str) -> Iterator[Path]:
    """A folder for gigabytes, which are gone after the family's tests."""
    with tempfile.TemporaryDirectory(prefix="wafervlm-real-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def full(family: str, folder: Path) -> Path:
    """The real configuration cut in depth, with random bfloat16 weights and the real tokenizer."""
    name, _, vision = REAL[family]
    real = data_folder().parent / "models" / name
    if not real.is_dir():
        pytest.skip(f"no configuration of the real family at {real}")
    shape = Path(shutil.copytree(real, folder / "shape"))
    config = read_config(real)
    config.get("text_config", config)["num_hidden_layers"] = TEXT_LAYERS
    config["vision_config"] |= vision
    (shape / "config.json").write_text(json.dumps(config))
    write_random(shape, folder / "float32", RandomSettings(seed=7, shard_bytes=10**9))
    return folder / "float32"


@pytest.fixture(scope="module")
def int4(full: Path, folder: Path) -> Path:
    """The same with its text core rounded to 4 bits."""
    source = Stored(full, checkpoint_family(full), torch.bfloat16)
    layers = {
        name.removesuffix(".weight"): round_to_nearest(source.tensor(name).float(), SCHEME)
        for name in source.names
        if ".language_model.layers." in name and name.endswith("_proj.weight")
    }
    (folder / "int4").mkdir()
    write_quantized(load_reference_streamed(full), layers, SCHEME, folder / "int4")
    return folder / "int4"


class Kept:
    """The tensors of ``source``, layers kept once they were read; embeddings and head are read by rows."""

    def __init__(self, source: Stored) -> None:
        self._source = source
        self._layers: dict[str, torch.Tensor] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def tensor(self, name: str) -> torch.Tensor:
        if name not in self._layers:
            self._layers[name] = self._source.tensor(name)
        return self._layers[name]

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._source.rows(name, start, stop)


class LabelHead(torch.nn.Module):
    """The rows of an output head that labels are scored by; logits of any other token are not numbers."""

    def __init__(self, head: RowHead, tokens: list[int]) -> None:
        super().__init__()
        self._tokens, self._vocabulary = tokens, head._vocabulary
        self._rows = torch.cat([head._source.rows(head._name, token, token + 1) for token in tokens])
        self.weight = head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden.new_full((*hidden.shape[:-1], self._vocabulary), torch.nan)
        logits[..., self._tokens] = hidden @ self._rows.T
        return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "order"),
    [("float32", "text-first"), ("float32", "image-first"), ("int4", "text-first")],
)
def test_the_graph_gives_transformers_scores_at_the_real_width(
    request: pytest.FixtureRequest,
    family: str,
    full: Path,
    folder: Path,
    precision: str,
    order: Order,
) -> None:
    checkpoint: Path = full if precision == "float32" else request.getfixturevalue("int4")
    known = checkpoint_family(checkpoint)
    task = _task(family, order)
    images = [
        *random_images(1, task.render.height),
        render(wafers(["Edge-Ring"], seed=1)[0], task.render),
    ]
    found = _graph_scores(checkpoint, task, images, folder / f"{precision}-{order}")
    source = Stored(checkpoint, known) if precision == "float32" else MultipliedOut(checkpoint)
    reference = load_streamed(checkpoint, known, Kept(source))
    tree = label_tree(reference.tokenizer, task)
    _check_tree(tree)
    tokens = sorted({token for sequence in tree.sequences for token in sequence})
    reference.model.lm_head = LabelHead(reference.model.lm_head, tokens)
    # One map against the truth; the other shows that the image, and its place in the batch, are heard.
    expected = label_log_probs(reference, task, images[:1])
    difference = float(np.abs(found[:1] - expected).max())
    logger.info("%s %s %s: %.2g off", family, precision, order, difference)
    assert difference < TOLERANCE
    assert np.abs(found[0] - found[1]).max() > 10 * TOLERANCE
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(axis=1), 1, atol=1e-5)


def _task(family: str, order: Order) -> Task:
    side = REAL[family][1]
    return replace(WAFER_DEFECTS, order=order, render=RenderSpec(side, side))


def _graph_scores(checkpoint: Path, task: Task, images: list[Any], out: Path) -> Any:
    """Label log-probabilities of the exported graph in ONNX Runtime, all products in float32."""
    out.mkdir()
    with WeightFile(out / "model.onnx.data") as file:
        model = build_model(Weights(checkpoint), task, file=file)
    ir.save(model, out / "model.onnx")
    scores = run(out / "model.onnx", images)
    shutil.rmtree(out)
    return scores


def _check_tree(tree: LabelTree) -> None:
    """Two of the labels begin alike: one choice more for them than for the rest."""
    tokens = dict(zip(tree.labels, tree.sequences, strict=True))
    assert tokens["Edge-Loc"][0] == tokens["Edge-Ring"][0]
    steps = dict(zip(tree.labels, tree.paths, strict=True))
    assert len(steps["Edge-Loc"]) == len(steps["Edge-Ring"]) == len(steps["Center"]) + 1
