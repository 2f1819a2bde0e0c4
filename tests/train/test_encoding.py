"""The inputs made for a model from images and questions."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.encoding import check_image_size, encode
from train.loading import Checkpoint, load_checkpoint, load_processor
from train.patches import patchify
from wafervlm.errors import ImageError, TaskError, UsageError
from wafervlm.render import RenderSpec, RgbImage
from wafervlm.task import Order, Task


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def family_loaded(family_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(family_checkpoint)


@pytest.fixture(scope="module")
def qwen3_vl_4b(wm811k: Path) -> Path:
    """The real family's configuration and tokenizer, without weights."""
    folder = wm811k.parents[1] / "models" / "qwen3-vl-4b"
    if not folder.is_dir():
        pytest.skip(f"no configuration of the real family at {folder}")
    return folder


@pytest.fixture(scope="module")
def real_processor(qwen3_vl_4b: Path) -> Any:
    return load_processor(qwen3_vl_4b)


def noise(count: int, height: int = 64, width: int = 64) -> list[RgbImage]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def sized(task: Task, count: int) -> list[RgbImage]:
    return noise(count, task.render.height, task.render.width)


@pytest.mark.parametrize("order", ["text-first", "image-first"])
def test_inputs_follow_the_order_and_end_with_the_answer(
    family_loaded: Checkpoint, family_task: Task, order: Order
) -> None:
    task = replace(family_task, order=order)
    inputs = encode(family_loaded, task, sized(task, 2), ["Near-full", "Loc"])
    text = family_loaded.tokenizer.batch_decode(inputs["input_ids"])
    assert all(
        (t.index("<|vision_start|>") < t.index("This is a image")) == (order == "image-first") for t in text
    )
    assert text[0].endswith("near-full defect.<|im_end|>")
    assert inputs["attention_mask"][0].all()
    assert not inputs["attention_mask"][1].all()
    assert inputs["attention_mask"][1].diff().max() <= 0  # padded on the right
    images = (inputs["input_ids"] == family_loaded.model.config.image_token_id).sum(dim=1)
    assert images.tolist() == (inputs["image_grid_thw"].prod(dim=1) // 4).tolist()
    asked = encode(family_loaded, task, sized(task, 2))["input_ids"]
    assert torch.equal(inputs["input_ids"][:, : asked.shape[1]], asked)


def test_pixels_are_those_of_the_image(loaded: Checkpoint, tiny_task: Task) -> None:
    task = replace(tiny_task, render=RenderSpec(32, 128))
    inputs = encode(loaded, task, noise(3, 32, 128))
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 16]] * 3
    expected = patchify(np.stack(noise(3, 32, 128)), patch=8, merge=2)
    torch.testing.assert_close(inputs["pixel_values"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(60, 64, "needs multiples of 16; set the task's render size, for example to 64x64"),
     (32, 32, "takes 4096 to 4096 pixels"), (64, 80, "takes 4096 to 4096 pixels")],
)  # fmt: skip
def test_an_image_that_would_be_resampled_is_refused(
    loaded: Checkpoint, tiny_task: Task, height: int, width: int, message: str
) -> None:
    task = replace(tiny_task, render=RenderSpec(height, width))
    with pytest.raises(TaskError, match=message):
        encode(loaded, task, noise(1, height, width))


@pytest.mark.parametrize("height", [16, 100, 256, 288, 4096])
def test_sizes_are_refused_exactly_where_the_processor_resamples(real_processor: Any, height: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    least, most = (real_processor.image_processor.size[key] for key in ("shortest_edge", "longest_edge"))
    for width in (16, 32, 100, 224, 256, 4096):
        try:
            kept = smart_resize(height, width, 32, least, most) == (height, width)
        except ValueError:
            kept = False
        if kept:
            check_image_size(real_processor, height, width)
        else:
            with pytest.raises(TaskError, match="would be resampled"):
                check_image_size(real_processor, height, width)


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((80, 64, 3), np.uint8), "map.png"]
)
def test_what_is_no_image_of_the_task_is_refused(loaded: Checkpoint, tiny_task: Task, image: Any) -> None:
    with pytest.raises(ImageError, match=r"must be a uint8 array of shape \(64, 64, 3\)"):
        encode(loaded, tiny_task, [image])


def test_labels_must_be_one_for_each_image_and_the_tasks(loaded: Checkpoint, tiny_task: Task) -> None:
    with pytest.raises(UsageError, match="2 images came with 1 labels"):
        encode(loaded, tiny_task, noise(2), ["Loc"])
    with pytest.raises(TaskError, match="'Spiral' is not a label"):
        encode(loaded, tiny_task, noise(1), ["Spiral"])


def test_real_tokenizer_and_template(
    loaded: Checkpoint, qwen3_vl_4b: Path, real_processor: Any, tmp_path: Path
) -> None:
    real = replace(loaded, processor=real_processor, tokenizer=real_processor.tokenizer)
    task = Task(labels=("Center", "Donut"), render=RenderSpec(256, 256))
    inputs = encode(real, task, noise(2, 256, 256), ["Center", "Donut"])
    assert inputs["image_grid_thw"].tolist() == [[1, 16, 16]] * 2
    assert (inputs["input_ids"] == 151655).sum(dim=1).tolist() == [64, 64]
    last = inputs["attention_mask"].sum(dim=1) - 1
    assert inputs["input_ids"][[0, 1], last].tolist() == [151645, 151645]  # <|im_end|>
    shutil.copyfile(qwen3_vl_4b / "config.json", tmp_path / "config.json")
    real_processor.save_pretrained(tmp_path)
    again = encode(
        replace(real, processor=load_processor(tmp_path)), task, noise(2, 256, 256), ["Center", "Donut"]
    )
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)
