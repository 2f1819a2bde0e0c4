"""Loading a checkpoint folder: model, processor, tokenizer. Never from the network."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.utils import logging as transformers_logging

from train.families import Family, family_of
from wafervlm.errors import CheckpointError, ProviderError, UsageError

CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"
DTYPES = ("float32", "bfloat16", "float16")
# Of each the first is usual, and the second stands in for it.
_PROCESSOR_FILES = (
    ("tokenizer.json", "vocab.json"),
    ("preprocessor_config.json", "processor_config.json"),
)
# What transformers, peft and safetensors raise for a folder that is not what its configuration says.
_UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded ``model``, in eval mode, with its ``processor`` and ``tokenizer``, its ``family`` and the
    folder ``path`` it came from."""

    model: Any
    processor: Any
    tokenizer: Any
    family: Family
    path: Path

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def network(self) -> Any:
        """The family's own model, without the shell that an adapter puts around it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def load_checkpoint(
    path: Path | str, *, dtype: str = "float32", device: str = "cpu", adapter: Path | str | None = None
) -> Checkpoint:
    """Load a checkpoint folder, with the LoRA ``adapter`` folder on top where given.

    ``dtype`` is that of the weights: float32, bfloat16 or float16. Raises CheckpointError for a folder
    that is no checkpoint, is of another architecture, is quantized, or lacks a file or a tensor;
    UsageError for another dtype; ProviderError for a device that is not there.
    """
    path = Path(path)
    family = _full_precision_family(path)
    processor = load_processor(path)
    check_placement(dtype, device)
    model = _load_model(path, family, getattr(torch, dtype)).to(device)
    if adapter is not None:
        model = _with_adapter(model, Path(adapter))
    return Checkpoint(model.eval(), processor, processor.tokenizer, family, path)


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises CheckpointError."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is not a checkpoint folder: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path / CONFIG} cannot be read: {error}; fetch or make the checkpoint again"
        ) from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path / CONFIG} must hold one JSON object")
    return config


def checkpoint_family(path: Path | str) -> Family:
    """The family of a checkpoint folder. Raises CheckpointError."""
    names = read_config(Path(path)).get("architectures") or []
    if not isinstance(names, list):
        raise CheckpointError(f"{Path(path) / CONFIG}: architectures must be a list of names, not {names!r}")
    return family_of([str(name) for name in names], str(path))


def load_processor(path: Path | str) -> Any:
    """The processor of a checkpoint folder: chat template, tokenizer and image processor, without video.

    Raises CheckpointError where one of them is missing.
    """
    path = Path(path)
    family = checkpoint_family(path)
    for alternatives in _PROCESSOR_FILES:
        if not any((path / name).is_file() for name in alternatives):
            raise CheckpointError(
                f"{path} lacks {alternatives[0]}; copy it from the checkpoint that this one was made from, "
                "or fetch it again"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        images = Qwen2VLImageProcessorPil.from_pretrained(path, local_files_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} has no usable tokenizer or image processor: {_first(error)}") from None
    tokenizer.chat_template = tokenizer.chat_template or _legacy_template(path)
    return family.processor(
        image_processor=images, tokenizer=tokenizer, chat_template=tokenizer.chat_template
    )


def check_weights(path: Path, report: dict[str, Any]) -> None:
    """Raise CheckpointError where transformers' loading ``report`` names a tensor that did not fit.

    transformers fills what is missing with random numbers and only warns.
    """
    for key, what in (("missing_keys", "lack"), ("mismatched_keys", "misshape"), ("unexpected_keys", "add")):
        # A misshapen tensor is reported as its name and two shapes.
        found = report.get(key) or ()
        if names := sorted(name if isinstance(name, str) else str(name[0]) for name in found):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"the weights in {path} do not fit its {CONFIG}: they {what} {', '.join(names[:3])}{more}; "
                "fetch or merge the checkpoint again"
            )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the bars and advice of transformers off the terminal; what matters is raised as an error."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _full_precision_family(path: Path) -> Family:
    family = checkpoint_family(path)
    if "quantization_config" in read_config(path):
        raise CheckpointError(f"{path} holds a quantized checkpoint; name the one that it was made from")
    return family


def check_placement(dtype: str, device: str) -> None:
    """Raise UsageError for a dtype that is not known, ProviderError for a device that is not there."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known; choose {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ProviderError(f"device {device!r} was asked for and torch sees no GPU here; choose cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ProviderError(f"device {device!r} cannot be used here: {_first(error)}; choose cpu") from None


def _load_model(path: Path, family: Family, dtype: torch.dtype) -> Any:
    try:
        with quiet_transformers():
            model, report = family.model.from_pretrained(
                path,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # check_weights names them, which the error would not
                output_loading_info=True,
                attn_implementation="sdpa",
            )
    except _UNREADABLE as error:
        raise CheckpointError(f"the weights in {path} cannot be loaded: {_first(error)}") from None
    check_weights(path, report)
    return model


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel, get_peft_model_state_dict

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (adapter / name).is_file():
            raise CheckpointError(f"{adapter} is not an adapter folder: it has no {name}")
    try:
        with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as stored:
            names = set(stored.keys())
        with warnings.catch_warnings(action="ignore"):
            adapted = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    except _UNREADABLE as error:
        raise CheckpointError(f"the adapter in {adapter} does not fit the model: {_first(error)}") from None
    # peft leaves what is missing as it was drawn, passes over what it does not know, and only warns.
    if differing := names ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False)):
        raise CheckpointError(
            f"the adapter in {adapter} does not fit the model: {min(differing)} and {len(differing) - 1} "
            "more tensors are in one and not in the other; use the base that it was trained on"
        )
    return adapted


def _legacy_template(path: Path) -> str:
    file = path / "chat_template.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} has no chat template: chat_template.jinja is missing") from None


def _first(error: Exception) -> str:
    """The beginning of a library's message, which may run over a page, on one line."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:240]}"
