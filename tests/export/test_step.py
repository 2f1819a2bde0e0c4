"""The step graph against transformers: the prompt in one step, each token after it in one more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from export.builder import OPSET
from export.external import WeightFile
from export.stage import build_model
from export.step import as_stored, rotary_tables
from export.weights import Weights
from export.words import words_models, words_section
from tests.conftest import SIDES, square_task
from tests.export.models import random_images, session
from train.encoding import encode
from train.loading import Checkpoint, load_checkpoint
from wafervlm.task import Order, Task
from wafervlm.words.section import Words

CONTEXT = 160


@dataclass(frozen=True)
class Exported:
    """A tiny model beside its graphs."""

    checkpoint: Checkpoint
    task: Task
    words: Words
    opset: int
    folder: Path

    def session(self, name: str) -> Any:
        return session(self.folder / name)


def exported(folder: Path, out: Path, task: Task, opset: int = OPSET) -> Exported:
    checkpoint, weights = load_checkpoint(folder), Weights(folder)
    words = words_section(weights, checkpoint.processor, task, CONTEXT)
    with WeightFile(out / "model.onnx.data") as file:
        models = words_models(weights, checkpoint.processor, task, words, "float32", file, opset)
    for name, model in models.items():
        ir.save(model, out / name)
    return Exported(checkpoint, task, words, opset, out)


def noisy(source: Path, out: Path) -> Path:
    """A copy of a checkpoint with noise on every parameter: fresh norms are 1 and fresh biases 0, and a
    graph that forgot them would not be found out."""
    checkpoint = load_checkpoint(source)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.08)
    checkpoint.model.save_pretrained(out)
    for path in source.iterdir():
        if not (out / path.name).exists():
            (out / path.name).write_bytes(path.read_bytes())
    return out


@pytest.fixture(scope="module")
def made(
    family: str, opset: int, tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    out = tmp_path_factory.mktemp("step")
    return exported(noisy(tiny_folder(family), out / "noisy"), out, square_task(SIDES[family]), opset)


def reference(made: Exported, inputs: dict[str, torch.Tensor], more: list[int]) -> NDArray[np.float32]:
    """Logits (1 + M, V) of transformers after the prompt and after each of ``more`` tokens."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([more])], dim=1)
    types = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, len(more), dtype=torch.long)], dim=1)
    with torch.inference_mode():
        logits: torch.Tensor = made.checkpoint.model(
            **{**inputs, "input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids)}
        ).logits
    return logits[0, -1 - len(more) :].numpy()


def stepped(
    made: Exported, image: NDArray[np.uint8], inputs: dict[str, torch.Tensor], steps: list[list[int]]
) -> list[NDArray[np.float32]]:
    """Logits (V,) after the prompt and after each group in ``steps``, at transformers' positions."""
    graph = made.session(made.words.step)
    features = made.session(made.words.features).run(None, {"image": image[None]})[0]
    ids, count = inputs["input_ids"][0].numpy(), made.words.image_tokens
    positions, _ = made.checkpoint.model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
    )
    places = positions[:, 0].numpy().T
    rows = np.full(len(ids), count)
    rows[ids == made.words.image_token] = np.arange(count)
    names = [item.name for item in graph.get_outputs()][1:]
    width = graph.get_inputs()[-1].shape[2]
    past = {name: np.empty((1, 0, width), np.float32) for name in names}
    found = []
    following = int(places.max()) + 1
    groups = [(ids, places, rows)]
    for group in steps:
        new = np.arange(following, following + len(group))
        groups.append((np.array(group), np.repeat(new[:, None], 3, 1), np.full(len(group), count)))
        following += len(group)
    for tokens, place, row in groups:
        before = past[names[0]].shape[1]
        sees = np.tri(len(tokens), before + len(tokens), before, dtype=bool)
        feeds = {
            "tokens": tokens[None],
            "positions": place[None],
            "image_rows": row,
            "features": features,
            "mask": np.where(sees, np.float32(0), np.float32(-1e4)),
            **{f"past_{name}": value for name, value in past.items()},
        }
        logits, *fresh = graph.run(None, feeds)
        assert all(value.shape == (1, len(tokens), width) for value in fresh)  # only the new ones
        past = {
            name: np.concatenate([past[name], value], axis=1)
            for name, value in zip(names, fresh, strict=True)
        }
        found.append(logits[0])
    return found


@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_logits_are_those_of_transformers(made: Exported, order: Order) -> None:
    image = random_images(1, made.task.render.height)[0]
    inputs = encode(made.checkpoint, replace(made.task, order=order), [image])
    more = [5, 6, 300, 7]
    wanted = reference(made, inputs, more)
    got = stepped(made, image, inputs, [[token] for token in more])
    assert np.abs(np.stack(got) - wanted).max() < 2e-5
    assert wanted.std() > 0.05  # as close as they are, they differ from token to token


def test_several_tokens_after_others_are_one_step(made: Exported) -> None:
    image = random_images(1, made.task.render.height, seed=2)[0]
    inputs = encode(made.checkpoint, made.task, [image])
    wanted = reference(made, inputs, [5, 6, 7, 8])
    got = stepped(made, image, inputs, [[5, 6, 7], [8]])
    np.testing.assert_allclose(got[1], wanted[3], atol=2e-5)
    np.testing.assert_allclose(got[2], wanted[4], atol=2e-5)


def test_every_pixel_and_feature_counts(made: Exported) -> None:
    image = random_images(1, made.task.render.height, seed=3)[0]
    features = made.session(made.words.features)
    before = features.run(None, {"image": image[None]})[0]
    assert before.shape[1] == made.words.image_tokens + 1
    assert not before[:, -1].any()  # the row that stands for text
    image[-1, -1] ^= 255
    assert np.abs(features.run(None, {"image": image[None]})[0] - before)[0].max() > 1e-4


def test_only_standard_operators_none_dependent_on_data(made: Exported) -> None:
    for name in made.words.features, made.words.step:
        model = onnx.load(made.folder / name, load_external_data=False)
        assert [(item.domain, item.version) for item in model.opset_import] == [("", made.opset)]
        onnx.checker.check_model(made.folder / name, full_check=True)
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"NonZero", "ScatterND", "ScatterElements", "If", "Loop", "Unique", "Compress"}
        assert all(len(node.output) == 1 for node in model.graph.node if node.op_type == "Attention")
    dynamic = {
        dim.dim_param
        for item in model.graph.input
        for dim in item.type.tensor_type.shape.dim
        if dim.dim_param
    }
    assert dynamic == {"T", "P", "P_T"}


def test_weights_are_those_of_the_classify_graph(made: Exported, tmp_path: Path) -> None:
    """Written with one WeightFile, describing adds the table of embeddings and the output head, and nothing
    else that is large."""
    weights = Weights(made.checkpoint.path)
    with WeightFile(tmp_path / "model.onnx.data") as file:
        classify = build_model(weights, made.task, "float32", file, made.opset)
        models = words_models(
            weights, made.checkpoint.processor, made.task, made.words, "float32", file, made.opset
        )
    shared = {
        (value.name, value.const_value.offset)
        for value in classify.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    own = {
        value.name
        for model in models.values()
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
        and (value.name, value.const_value.offset) not in shared
    }
    tables = {"text/rotary_cos", "text/rotary_sin", "text/model.language_model.embed_tokens.weight"}
    assert own <= {*tables, "text/lm_head.weight", "vision/places"}
    assert any(name.endswith("gate_up/weight") for name, _ in shared)


def test_rotary_tables_reach_to_the_end_of_the_context(made: Exported) -> None:
    weights = Weights(made.checkpoint.path)
    cos, sin, axes = rotary_tables(weights, CONTEXT)
    assert cos.shape == sin.shape == (CONTEXT, len(axes))
    assert set(axes) == {0, 1, 2}
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tables_are_kept_as_they_are_stored(dtype: torch.dtype) -> None:
    values = torch.linspace(-2, 2, 64).to(torch.bfloat16).to(dtype).reshape(8, 8)
    stored = as_stored(values)
    assert stored.dtype.itemsize == 2
    np.testing.assert_array_equal(stored.astype(np.float32), values.float().numpy())
    exact = torch.tensor([1 + 2**-20])
    assert as_stored(exact).dtype == np.float32
