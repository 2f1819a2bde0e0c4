"""Checkpoint folders: what loads, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.train.test_encoding import sized
from train.encoding import encode
from train.loading import Checkpoint, checkpoint_family, load_checkpoint, load_processor
from wafervlm.errors import CheckpointError, ProviderError, UsageError
from wafervlm.task import Task

LAYER = "model.language_model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="module")
def family_loaded(family_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(family_checkpoint)


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
    with pytest.raises(ProviderError, match="'tpu' cannot be used here.*choose cpu"):
        load_checkpoint(tiny_checkpoint, device="tpu")


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
