"""Small models for the tests of export: checkpoints whose every weight matters, and tasks for them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from calibrate.gptq import Scheme, round_to_nearest
from calibrate.pack import write_quantized
from train.loading import load_checkpoint
from wafervlm.render import RenderSpec, RgbImage
from wafervlm.task import Order, Task


def roughened(
    checkpoint: Path, out: Path, *, dtype: torch.dtype = torch.float32, scale: float = 0.08
) -> Path:
    """A copy of ``checkpoint`` with noise on every parameter.

    Fresh norms are 1 and fresh biases 0: a graph that forgets them would not be found out.
    """
    shutil.copytree(checkpoint, out)
    model = load_checkpoint(checkpoint).model
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * scale
    model.to(dtype).save_pretrained(out)
    return out


def make_task(
    labels: Sequence[str], *, order: Order = "text-first", prefix: str = "It is", suffix: str = "."
) -> Task:
    """A task over ``labels`` with a short prompt on 64x64 images."""
    return Task(
        labels=tuple(labels),
        prompt="What does this wafer show?",
        order=order,
        answer_prefix=prefix,
        answer_suffix=suffix,
        render=RenderSpec(64, 64),
    )


def random_images(count: int, size: int = 64, seed: int = 0) -> list[RgbImage]:
    """``count`` images of noise, which no wafer looks like: every pixel matters."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def session(path: Path, *, accuracy_level: int = 0, optimised: Path | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on one thread; ``optimised`` is where it writes the graph it made of it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, images: Sequence[RgbImage]) -> NDArray[np.float32]:
    """Label log-probabilities of all ``images`` in one batch, at exact accuracy."""
    scores: NDArray[np.float32] = session(path).run(None, {"image": np.stack(images)})[0]
    return scores


def quantized(checkpoint: Path, out: Path, *, group: int = 32, bits: int = 4) -> Path:
    """``checkpoint`` with its text core rounded to nearest, in the AutoGPTQ v1 layout."""
    source, scheme = load_checkpoint(checkpoint), Scheme(bits=bits, group=group)
    layers = {
        name: round_to_nearest(module.weight.detach(), scheme)
        for name, module in source.model.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model" in name
    }
    out.mkdir()
    write_quantized(source, layers, scheme, out)
    return out
