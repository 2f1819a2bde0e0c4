"""Checkpoint folders: what loads, what is refused, and the inputs made for a model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from train.loading import checkpoint_family, encode, load_checkpoint, load_processor
from wafervlm.errors import CheckpointError, TaskError
from wafervlm.render import RenderSpec, render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_loads_in_eval_mode_with_what_goes_with_it(tiny_checkpoint: Path) -> None:
    loaded = load_checkpoint(tiny_checkpoint)
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert loaded.family.name == "qwen3_vl"
    assert loaded.tokenizer.eos_token == "<|im_end|>"  # noqa: S105
    assert loaded.device.type == "cpu"


def test_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="one JSON object"):
        load_checkpoint(tmp_path)


def test_another_architecture_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="LlamaForCausalLM; supported is Qwen3VL"):
        checkpoint_family(copy)


def test_missing_tensor_is_not_filled_with_random_numbers(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.language_model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing model\.language_model\.layers\.0\.mlp\.up_proj"):
        load_checkpoint(copy)


def test_misshapen_tensor_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.language_model.norm.weight"] = torch.ones(3)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="norm"):
        load_checkpoint(copy)


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_weights_are_refused(copy: Path, damage: str) -> None:
    weights = copy / "model.safetensors"
    weights.unlink() if damage == "remove" else weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_checkpoint(copy)


def test_not_an_adapter(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not an adapter folder"):
        load_checkpoint(tiny_checkpoint, adapter=tmp_path)


def test_processor_saves_and_loads_back(tiny_checkpoint: Path, tiny_task: Task, tmp_path: Path) -> None:
    first = load_checkpoint(tiny_checkpoint)
    shutil.copyfile(tiny_checkpoint / "config.json", tmp_path / "config.json")
    shutil.copyfile(tiny_checkpoint / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    first.processor.save_pretrained(tmp_path)
    again = replace(first, processor=load_processor(tmp_path))
    image = render(WaferMap(np.ones((9, 9), dtype=np.uint8)), tiny_task.render)
    one, two = encode(first, tiny_task, [image]), encode(again, tiny_task, [image])
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_inputs_follow_the_order_and_end_with_the_answer(tiny_checkpoint: Path, tiny_task: Task, order: str) -> None:
    loaded, task = load_checkpoint(tiny_checkpoint), replace(tiny_task, order=order)
    image = render(WaferMap(np.ones((9, 9), dtype=np.uint8)), task.render)
    inputs = encode(loaded, task, [image, image], ["Near-full", "Loc"])
    text = loaded.tokenizer.batch_decode(inputs["input_ids"])
    assert all((t.index("<|vision_start|>") < t.index("This is a image")) == (order == "image-first") for t in text)
    assert text[0].endswith("near-full defect.<|im_end|>")
    assert inputs["attention_mask"][0].all()
    assert inputs["attention_mask"][1].diff().max() <= 0  # padded on the right
    assert int((inputs["input_ids"][0] == loaded.model.config.image_token_id).sum()) == 16


@pytest.mark.parametrize(("height", "width", "message"), [(60, 64, "multiple of 16"), (32, 32, "resampled")])
def test_an_image_that_would_be_resampled_is_refused(
    tiny_checkpoint: Path, tiny_task: Task, height: int, width: int, message: str
) -> None:
    loaded, task = load_checkpoint(tiny_checkpoint), replace(tiny_task, render=RenderSpec(height, width))
    image = render(WaferMap(np.ones((9, 9), dtype=np.uint8)), task.render)
    with pytest.raises(TaskError, match=message):
        encode(loaded, task, [image])


def test_real_tokenizer_and_template(wm811k: Path) -> None:
    folder = wm811k.parents[1] / "models" / "qwen3-vl-4b"
    if not folder.is_dir():
        pytest.skip(f"no configuration of the real family at {folder}")
    processor = load_processor(folder)
    task = Task(labels=("Center", "Donut"), render=RenderSpec(256, 256))
    text = processor.tokenizer.apply_chat_template(task.messages(), tokenize=False, add_generation_prompt=True)
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]]
    assert int((inputs["input_ids"] == 151655).sum()) == 64
