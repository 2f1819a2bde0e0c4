"""The AutoGPTQ v1 checkpoint layout, which vLLM, transformers and GPTQModel read.

Of a linear layer with K inputs and N outputs, b bits and groups of g inputs, a checkpoint holds

=======  ======================  =====================================================================
qweight  int32 (K b / 32, N)     levels + 2^(b-1), b bits each, down K from the lowest bit
qzeros   int32 (K / g, N b / 32) the zero point less one, packed so along N: 0x77777777 for four bits
scales   float16 (K / g, N)
g_idx    int32 (K,)              the group of each input, k // g
=======  ======================  =====================================================================

Three bits run across words as one stream of bits, as AutoGPTQ 0.7 has them. A bias stays as it was. Layers
are known by the model's names; in the files they keep the spelling that the source has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from calibrate.gptq import QuantizedWeight, Scheme
from train.loading import Checkpoint, checkpoint_family, load_processor, read_config
from wafervlm.errors import CheckpointError, ConfigError

QUANTIZE_CONFIG = "quantize_config.json"
PACKED = ("qweight", "qzeros", "scales", "g_idx")
WORD = 32
_INDEX = "model.safetensors.index.json"
_NOT_COPIED = {_INDEX, "config.json", "provenance.json"}


def pack(weight: QuantizedWeight, bits: int = 4) -> dict[str, torch.Tensor]:
    """``weight`` as the four tensors of PACKED, on the CPU. Raises ConfigError for a size that does not fill
    whole words."""
    outputs, inputs = weight.levels.shape
    groups, zero = weight.scales.shape[1], 1 << (bits - 1)
    if outputs * bits % WORD or inputs * bits % WORD:
        raise ConfigError(f"a layer of {inputs} inputs and {outputs} outputs cannot be packed in {bits} bits")
    codes = (weight.levels.cpu().to(torch.int16) + zero).numpy().astype(np.uint8)
    zeros = np.full((outputs, groups), zero - 1, dtype=np.uint8)
    return {
        "qweight": torch.from_numpy(_join(codes.T, bits)),
        "qzeros": torch.from_numpy(np.ascontiguousarray(_join(zeros, bits).T)),
        "scales": weight.scales.cpu().T.contiguous().half(),
        "g_idx": (torch.arange(inputs) // (inputs // groups)).to(torch.int32),
    }


def unpack(parts: Mapping[str, torch.Tensor], name: str, bits: int = 4) -> QuantizedWeight:
    """The levels and scales of a packed layer.

    Raises CheckpointError where a part is missing, shapes or types do not fit, zero points are not
    symmetric, or groups are not contiguous.
    """
    _check_shapes(parts, name, bits)
    inputs, groups, zero = len(parts["g_idx"]), len(parts["scales"]), 1 << (bits - 1)
    size, order = inputs // groups, parts["g_idx"].cpu().long()
    strange = order[(order < 0) | (order >= groups)]
    if len(strange):
        raise CheckpointError(
            f"{name}.g_idx names group {int(strange[0])}, and the layer has {groups}: the file is damaged; "
            "fetch it again, or quantize it again"
        )
    firsts = order[::size]
    # Groups that are whole but come in another order only need their scales in that order.
    if not torch.equal(order, firsts.repeat_interleave(size)) or not torch.equal(
        firsts.sort().values, torch.arange(groups)
    ):
        raise CheckpointError(
            f"{name} has groups that are not contiguous (act-order without static groups); quantize it with "
            "wafervlm calibrate, or with static groups"
        )
    if (_split(parts["qzeros"].cpu().numpy().T, bits) != zero - 1).any():
        raise CheckpointError(
            f"{name} has zero points that are not symmetric; only symmetric weights are supported"
        )
    if not torch.isfinite(parts["scales"]).all():
        raise CheckpointError(f"{name} has a scale that is not finite")
    codes = _split(parts["qweight"].cpu().numpy(), bits).T.astype(np.int16)
    scales = parts["scales"].cpu()[firsts]
    return QuantizedWeight(torch.from_numpy((codes - zero).astype(np.int8)), scales.T.contiguous())


def read_packed(tensors: Mapping[str, torch.Tensor], name: str, bits: int = 4) -> QuantizedWeight:
    """The quantized linear layer ``name`` among ``tensors``. Raises CheckpointError."""
    return unpack(
        {part: tensors[f"{name}.{part}"] for part in PACKED if f"{name}.{part}" in tensors}, name, bits
    )


def write_quantized(
    source: Checkpoint, weights: Mapping[str, QuantizedWeight], scheme: Scheme, folder: Path
) -> None:
    """Write the checkpoint ``source`` to ``folder`` with the linear layers ``weights`` packed.

    All else stays as the source's files have it, file by file: other weights in their precision, tied ones
    tied, tokenizer and processor. Raises CheckpointError where the source does not hold a layer.
    """
    names: dict[str, tuple[str, int]] = {}
    left = set(weights)
    for file in _weight_files(source.path):
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in _tensors(file):
            layer = source.family.module_name(name).removesuffix(".weight")
            if layer in weights:
                left.discard(layer)
                packed = pack(weights[layer], scheme.bits)
                tensors |= {f"{name.removesuffix('.weight')}.{part}": packed[part] for part in PACKED}
            else:
                tensors[name] = tensor
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
        names |= {name: (file.name, tensor.nbytes) for name, tensor in tensors.items()}
    if left:
        raise CheckpointError(f"{source.path} does not store the weight of {min(left)} under that name")
    _write_index(names, folder)
    for path in source.path.iterdir():
        if (
            path.is_file()
            and path.suffix not in {".safetensors", ".bin", ".pt"}
            and path.name not in _NOT_COPIED
        ):
            shutil.copyfile(path, folder / path.name)
    quantization = quantization_config(scheme)
    config = {**read_config(source.path), "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / QUANTIZE_CONFIG).write_text(json.dumps(quantization, indent=2) + "\n", encoding="utf-8")


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """What other tools read. Columns are stored in order, so ``desc_act`` is false for them."""
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group,
        "damp_percent": scheme.damping,
        "desc_act": False,
        "static_groups": True,
        "sym": True,
        "true_sequential": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "modules_to_not_convert": ["visual", "lm_head"],
        "dynamic": {"-:.*visual.*": {}},
    }


def load_quantized(path: Path | str, *, device: str = "cpu") -> Checkpoint:
    """Load a GPTQ folder with its weights multiplied out in float32: the reference for an INT4 export.

    Raises CheckpointError for a folder that is not quantized, or in a layout that is not supported.
    """
    path = Path(path)
    family, config = checkpoint_family(path), read_config(path)
    quantization = config.pop("quantization_config", None)
    bits = _checked_bits(quantization, path)
    packed = {
        family.module_name(name): tensor for file in _weight_files(path) for name, tensor in _tensors(file)
    }
    dense: dict[str, torch.Tensor] = {}
    for name, tensor in packed.items():
        layer, _, part = name.rpartition(".")
        if part == "qweight":
            dense[f"{layer}.weight"] = read_packed(packed, layer, bits).dense()
        elif part not in PACKED:
            dense[name] = tensor.float()
    settings = family.model.config_class.from_dict({**config, "dtype": "float32"})
    # Through from_config, so that attention is computed as in a checkpoint that was never quantized.
    model = family.model._from_config(settings, attn_implementation="sdpa", dtype=torch.float32)
    _fill(model, dense, path)
    processor = load_processor(path)
    return Checkpoint(model.to(device).eval(), processor, processor.tokenizer, family, path)


def _checked_bits(quantization: object, path: Path) -> int:
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "gptq":
        raise CheckpointError(
            f"{path} is not a GPTQ checkpoint: its config.json has no quantization_config for it"
        )
    layout, bits = quantization.get("checkpoint_format", "gptq"), quantization.get("bits")
    if layout != "gptq":
        raise CheckpointError(
            f"{path} is in the layout {layout!r}; known is 'gptq' (v1), as wafervlm calibrate writes it"
        )
    if not isinstance(bits, int) or bits not in range(2, 9):
        raise CheckpointError(f"{path} says that its weights have {bits!r} bits; known are 2 to 8")
    return bits


def _check_shapes(parts: Mapping[str, torch.Tensor], name: str, bits: int) -> None:
    missing = [part for part in PACKED if part not in parts]
    if missing:
        raise CheckpointError(f"{name} lacks the tensor {missing[0]}; it is not a whole GPTQ checkpoint")
    inputs, outputs, groups = len(parts["g_idx"]), parts["scales"].shape[-1], len(parts["scales"])
    wanted = {
        "qweight": (torch.int32, (inputs * bits // WORD, outputs)),
        "qzeros": (torch.int32, (groups, outputs * bits // WORD)),
        "scales": (torch.float16, (groups, outputs)),
        "g_idx": (torch.int32, (inputs,)),
    }
    if groups == 0 or inputs == 0 or inputs % groups or inputs * bits % WORD or outputs * bits % WORD:
        raise CheckpointError(
            f"the quantized tensors of {name} do not fit together: {inputs} inputs in {groups} groups"
        )
    for part, (dtype, shape) in wanted.items():
        found = parts[part]
        if found.dtype != dtype or tuple(found.shape) != shape:
            raise CheckpointError(
                f"the quantized tensors of {name} do not fit together: {part} is {found.dtype} "
                f"{tuple(found.shape)} and should be {dtype} {shape} at {bits} bits"
            )


def _fill(model: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit its configuration: {error}") from None
    model.tie_weights()
    missing = [
        name for name in missing if not (name == "lm_head.weight" and model.config.tie_word_embeddings)
    ]
    if missing or unexpected:
        raise CheckpointError(
            f"the weights in {path} do not fit its configuration: {(missing + unexpected)[0]}"
        )


def _weight_files(path: Path) -> list[Path]:
    """The .safetensors files of a checkpoint. Raises CheckpointError where one is missing."""
    if (path / _INDEX).is_file():
        try:
            names = sorted(
                set(json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path / _INDEX} cannot be read: {error}") from None
        return [path / str(name) for name in names]
    return [path / "model.safetensors"]


def _tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                yield name, stored.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None


def _write_index(names: Mapping[str, tuple[str, int]], folder: Path) -> None:
    if len({file for file, _ in names.values()}) > 1:
        index = {
            "metadata": {"total_size": sum(size for _, size in names.values())},
            "weight_map": {name: file for name, (file, _) in sorted(names.items())},
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _join(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """``codes`` (R, C), each below 2^bits, as int32 (R * bits / 32, C): a stream of bits down each column."""
    planes = (codes[:, None, :] >> np.arange(bits, dtype=np.uint8)[None, :, None]) & 1  # (R, bits, C)
    octets: NDArray[np.uint8] = np.packbits(planes.reshape(-1, codes.shape[1]), axis=0, bitorder="little")
    return np.ascontiguousarray(octets.T).view("<i4").T.astype(np.int32, order="C")


def _split(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """The inverse of ``_join``: codes (R, C) from words (R * bits / 32, C)."""
    octets = np.ascontiguousarray(words.T).astype("<i4", copy=False).view(np.uint8)  # (C, R * bits / 8)
    if bits == 4:  # the common case, in a quarter of the time
        halves: NDArray[np.uint8] = np.stack([octets & 15, octets >> 4], axis=2).reshape(len(octets), -1)
        return halves.T
    planes = np.unpackbits(octets, axis=1, bitorder="little").reshape(len(octets), -1, bits)
    codes: NDArray[np.uint8] = np.packbits(planes, axis=2, bitorder="little")[:, :, 0].T
    return codes
