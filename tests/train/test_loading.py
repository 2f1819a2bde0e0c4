"""Checkpoint folders: what loads, what is refused, and the inputs made for a model."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from train.loading import (
    Checkpoint,
    check_image_size,
    checkpoint_family,
    encode,
    load_checkpoint,
    load_processor,
)
from train.patches import patchify
from wafervlm.errors import CheckpointError, ImageError, ProviderError, TaskError, UsageError
from wafervlm.render import RenderSpec, RgbImage
from wafervlm.task import Order, Task

LAYER = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


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


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def save_adapter(base: Path, out: Path, *, vision: bool = False, rank: int = 2) -> Path:
    model = load_checkpoint(base).model
    targets = checkpoint_family(base).lora_targets(vision=vision)
    config = LoraConfig(r=rank, target_modules=targets)
    get_peft_model(model, config).save_pretrained(out)
    return out


def test_loads_in_eval_mode_with_what_goes_with_it(family_loaded: Checkpoint, family: str) -> None:
    assert not family_loaded.model.training
    assert family_loaded.model.dtype == torch.float32
    assert family_loaded.family.name == family
    assert family_loaded.tokenizer.eos_token == "<|im_end|>"
    assert family_loaded.device.type == "cpu"


def test_dtype_is_that_of_the_weights(tiny_checkpoint: Path) -> None:
    half = load_checkpoint(tiny_checkpoint, dtype="bfloat16").model
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    # Rotary frequencies stay exact whatever the weights are.
    assert half.model.language_model.rotary_emb.inv_freq.dtype == torch.float32


def test_placement_that_cannot_be_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="'int4' is not known; choose float32"):
        load_checkpoint(tiny_checkpoint, dtype="int4")
    if not torch.cuda.is_available():
        with pytest.raises(ProviderError, match="torch sees no GPU"):
            load_checkpoint(tiny_checkpoint, device="cuda")


def test_nothing_is_asked_of_the_network(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_checkpoint(tiny_checkpoint, adapter=adapter)
    with pytest.raises(CheckpointError):
        load_checkpoint("Qwen/Qwen3-VL-4B-Instruct")


def test_nothing_is_written_to_the_terminal(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_checkpoint(tiny_checkpoint)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no config.json"), ("{", "cannot be read.*again"), ("[]", "one JSON object"),
     ('{"architectures": "Qwen3VL"}', "must be a list"), ("{}", "no architecture")],
)  # fmt: skip
def test_not_a_checkpoint(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_another_architecture_is_refused(copy: Path) -> None:
    change_config(copy, architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match="LlamaForCausalLM, and supported is Qwen2_5_VL.*, Qwen3VL"):
        checkpoint_family(copy)


def test_quantized_checkpoint_is_refused(copy: Path) -> None:
    change_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="quantized checkpoint; name the one that it was made from"):
        load_checkpoint(copy)


@pytest.mark.parametrize("values", [{"text_config": 3}, {"vision_config": {"depth": "two"}}])
def test_configuration_that_no_model_has_is_refused(copy: Path, values: dict[str, Any]) -> None:
    change_config(copy, **values)
    with pytest.raises(CheckpointError, match=re.escape(str(copy))):
        load_checkpoint(copy)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[LAYER]


def misshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.language_model.norm.weight"] = torch.ones(3)


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.language_model.layers.7.mlp.up_proj.weight"] = torch.ones(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, f"they lack {re.escape(LAYER)}"),
        (misshape, r"they misshape model\.language_model\.norm\.weight;"),
        (add, r"they add .*layers\.7\.mlp"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    copy: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(copy)


@pytest.mark.parametrize("kept", [None, 0, 4, 1000, -1])
def test_damaged_weights_are_refused(copy: Path, kept: int | None) -> None:
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if kept is not None:
        weights.write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=r"cannot be loaded: \w+: "):
        load_checkpoint(copy)


def test_a_missing_shard_is_refused(tiny_checkpoint: Path, copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    load_checkpoint(tiny_checkpoint).model.save_pretrained(copy, max_shard_size="200KB")
    load_checkpoint(copy)
    shards = sorted(copy.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=shards[-1].name):
        load_checkpoint(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_a_missing_processor_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    says = (
        "has no chat template" if "template" in name else rf"lacks {name}; copy it from .* or fetch it again$"
    )
    with pytest.raises(CheckpointError, match=says):
        load_processor(copy)


def test_the_older_file_of_the_chat_template_is_read(copy: Path, tiny_task: Task) -> None:
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    processor = load_processor(copy)
    for part in (processor, processor.tokenizer):
        assert "assistant" in part.apply_chat_template(tiny_task.messages("Loc"), tokenize=False)


@pytest.mark.parametrize("vision", [False, True])
def test_adapter_is_applied(
    family_checkpoint: Path, family_loaded: Checkpoint, family_task: Task, tmp_path: Path, vision: bool
) -> None:
    folder = save_adapter(family_checkpoint, tmp_path, vision=vision)
    tensors = {
        name: torch.ones_like(t) * 0.1 for name, t in load_file(folder / "adapter_model.safetensors").items()
    }
    assert any("visual" in name for name in tensors) == vision
    save_file(tensors, folder / "adapter_model.safetensors")
    adapted = load_checkpoint(family_checkpoint, adapter=folder)
    assert type(adapted.network) is family_loaded.family.model
    inputs = encode(family_loaded, family_task, sized(family_task, 1))
    with torch.no_grad():
        assert (adapted.model(**inputs).logits - family_loaded.model(**inputs).logits).abs().max() > 1e-3


def test_an_adapter_that_is_none_or_does_not_fit_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not an adapter folder: it has no adapter_config\.json"):
        load_checkpoint(tiny_checkpoint, adapter=tmp_path)
    folder = save_adapter(tiny_checkpoint, tmp_path / "adapter")
    weights, whole = folder / "adapter_model.safetensors", load_file(folder / "adapter_model.safetensors")
    for change in (dict(list(whole.items())[1:]), {**whole, "base_model.model.more": torch.ones(2)}):
        save_file(change, weights)
        with pytest.raises(CheckpointError, match="does not fit the model: .* 0 more tensors"):
            load_checkpoint(tiny_checkpoint, adapter=folder)
    save_file({name: torch.ones(3, 3) for name in whole}, weights)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_checkpoint(tiny_checkpoint, adapter=folder)
    weights.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_checkpoint(tiny_checkpoint, adapter=folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        load_checkpoint(tiny_checkpoint, adapter=folder)


def test_processor_saves_and_loads_back(
    family_loaded: Checkpoint, family_checkpoint: Path, family_task: Task, tmp_path: Path
) -> None:
    shutil.copyfile(family_checkpoint / "config.json", tmp_path / "config.json")
    family_loaded.processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    architecture = family_loaded.family.architecture
    assert saved["processor_class"] == architecture.replace("ForConditionalGeneration", "Processor")
    again = replace(family_loaded, processor=load_processor(tmp_path))
    images = sized(family_task, 2)
    one, two = (encode(part, family_task, images, ["Loc", "none"]) for part in (family_loaded, again))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


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
