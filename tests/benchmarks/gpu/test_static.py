"""The static pass and the recorded forward against transformers, label by label."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu.device import Device
from benchmarks.gpu.linear import make_form
from benchmarks.gpu.prompted import Generate, OneForward, RecordedForward, labels_written
from benchmarks.gpu.static import StaticPass
from benchmarks.gpu.subject import Subject
from export.sequence import plan_sequence
from train.scorer import label_log_probs
from train.tree import label_tree


@pytest.fixture(scope="module")
def reference(subject: Subject) -> Any:
    return label_log_probs(subject.checkpoint, subject.task, subject.images)


def static_scores(subject: Subject, **forms: Any) -> Any:
    module = StaticPass(subject.checkpoint, subject.task, **forms)
    with torch.no_grad():
        return module(subject.pixels(len(subject.images))[0]).double().numpy()


def test_the_static_pass_gives_the_reference_scores(subject: Subject, reference: Any) -> None:
    scores = static_scores(subject)
    assert reference.std() > 0.1
    np.testing.assert_allclose(scores, reference, atol=1e-4)


def test_images_before_the_text_need_no_fixed_keys(subject: Subject) -> None:
    first = replace(subject, task=replace(subject.task, order="image-first"))
    wanted = label_log_probs(first.checkpoint, first.task, first.images)
    np.testing.assert_allclose(static_scores(first), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", [OneForward, RecordedForward])
def test_both_forwards_give_the_reference_scores(subject: Subject, reference: Any, kind: Any) -> None:
    count = len(subject.images)
    with torch.no_grad():
        scores = kind(subject, count)(subject.patches(count)[0])
    np.testing.assert_allclose(scores.double().numpy(), reference, atol=1e-4)
    assert "_deepstack_process" not in vars(subject.checkpoint.model.model.language_model)


def test_it_computes_the_tokens_that_the_exported_graph_computes(subject: Subject) -> None:
    tokenizer, config = subject.checkpoint.tokenizer, subject.checkpoint.model.config
    sequence = plan_sequence(tokenizer, subject.task, label_tree(tokenizer, subject.task), config)
    module = StaticPass(subject.checkpoint, subject.task)
    assert (module.computed_tokens, module.fixed_tokens) == (sequence.length, len(sequence.before))
    assert module.text.rows.tolist() == list(sequence.rows)


@pytest.mark.parametrize(("kind", "allowed"), [("int4", 1e-3), ("fp8", 0.05)])
def test_quantized_passes_are_those_of_their_weights(
    subject: Subject, cpu: Device, kind: str, allowed: float
) -> None:
    """A model whose weights are what a form stands for gives that form's scores in full precision."""
    form = make_form(kind, cpu.torch, 32)
    rounded = copy.deepcopy(subject.checkpoint.model)
    for layer in rounded.model.language_model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(form(module.weight, None).dense())
    wanted = label_log_probs(replace(subject.checkpoint, model=rounded), subject.task, subject.images)
    np.testing.assert_allclose(static_scores(subject, text=form), wanted, atol=allowed)


def test_blocks_of_a_kind_are_compiled_once(subject: Subject) -> None:
    module = StaticPass(subject.checkpoint, subject.task)
    # Another layer of the same kind, which must not be compiled anew.
    module.text.layers.insert(0, copy.deepcopy(module.text.layers[0]))
    for name in ("keys", "values"):
        module.text.register_buffer(f"{name}_2", getattr(module.text, f"{name}_1"))
        module.text.register_buffer(f"{name}_1", getattr(module.text, f"{name}_0"))
    images = subject.pixels(2)[0]
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        plain = module(images)
        module.compile_blocks(backend="aot_eager")
        torch.testing.assert_close(module(images), plain, atol=1e-5, rtol=0)
    # One for the decoder layers; one for the tower's blocks, or two where some attend within windows.
    windows = subject.checkpoint.family.name == "qwen2_5_vl"
    assert counters["stats"]["unique_graphs"] == 2 + windows
    torch._dynamo.reset()


class DeviceOnly(TorchDispatchMode):
    """Fails where the host is waited for or copied from. "meta" stands for the device: it holds no values, so
    that reading one raises by itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        assert len({tensor.device.type for tensor in tensors}) <= 1, func
        return out


def test_a_cuda_graph_could_record_the_static_pass(subject: Subject) -> None:
    module = StaticPass(subject.checkpoint, subject.task).to("meta")
    images = subject.pixels(2)[0].to("meta")
    with torch.no_grad(), DeviceOnly():
        assert module(images).shape == (2, len(subject.task.labels))


def test_a_cuda_graph_could_record_the_forward_but_not_that_of_transformers(subject: Subject) -> None:
    checkpoint = replace(subject.checkpoint, model=copy.deepcopy(subject.checkpoint.model))
    own = replace(subject, checkpoint=checkpoint)
    patches = own.patches(2)[0].to("meta")
    recorded, whole = RecordedForward(own, 2), OneForward(own, 2)
    for module in (recorded, whole):
        module.to("meta")
        module.constants = {name: tensor.to("meta") for name, tensor in module.constants.items()}
    host = ("cu_seqlens", "cu_window_seqlens")
    recorded.grid = {k: v if k in host else v.to("meta") for k, v in recorded.grid.items()}
    with torch.no_grad(), DeviceOnly():
        assert recorded(patches).shape == (2, len(own.task.labels))
        with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
            whole(patches)


def test_generate_writes_as_many_tokens_as_asked(subject: Subject) -> None:
    written = Generate(subject, 2, 4)(subject.patches(2)[0])
    assert written.shape == (2, 4)
    answer = subject.task.answer(subject.task.labels[3])
    ids = subject.checkpoint.tokenizer([answer], return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert labels_written(subject, ids) == [3]
    assert labels_written(subject, ids[:, :2]) == [-1]


def test_the_matrices_are_all_products_of_the_pass(subject: Subject) -> None:
    module = StaticPass(subject.checkpoint, subject.task)
    matrices = module.matrices(subject.pixels(2)[0])
    linears = [m for m in module.modules() if hasattr(m, "outputs")]
    assert sum(matrix.count for matrix in matrices) == len(linears)
    rows = len(module.text.rows)
    text = {matrix.m for matrix in matrices if matrix.part == "text"}
    assert text == {2 * module.computed_tokens, 2 * rows}
    vision = subject.checkpoint.model.config.vision_config
    patches = (subject.task.render.height // vision.patch_size) ** 2
    assert {m.m for m in matrices if m.part == "vision"} == {2 * patches, 2 * patches // 4}
