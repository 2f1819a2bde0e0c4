"""A model with one decoder layer or vision block in memory at a time.

The rest (norms, position embeddings, the last merger) stays. A unit is fetched when it runs and given up
when the next one runs, so that a whole forward pass of a 7B takes the memory of its largest unit. The
embeddings and the output head, which together can be larger than all else, are read by rows.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file

from train.families import Family
from train.loading import CONFIG, Checkpoint, load_processor, quiet_transformers, read_config
from train.shards import Shards
from wafervlm.errors import CheckpointError

State = dict[str, torch.Tensor]
ROWS = 1 << 14


class Source(Protocol):
    """Where a streamed model's weights come from, by the names of its modules."""

    def __contains__(self, name: object) -> bool: ...

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor ``name``."""

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows of the tensor ``name``."""


class Stored:
    """The tensors of a full-precision checkpoint folder, in ``dtype``."""

    def __init__(self, path: Path, family: Family, dtype: torch.dtype = torch.float32) -> None:
        self.shards, self._dtype = Shards(path), dtype
        self.names = {family.module_name(name): name for name in self.shards.slots}

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def tensor(self, name: str) -> torch.Tensor:
        return self.shards.tensor(self.names.get(name, name)).to(self._dtype)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.shards.rows(self.names.get(name, name), start, stop).to(self._dtype)


class Home(Protocol):
    """Where units are while they do not run."""

    def fetch(self, name: str, unit: torch.nn.Module) -> State:
        """The tensors of the unit ``name``, which has none at the moment."""

    def store(self, name: str, state: State) -> None:
        """Keep the tensors of the unit ``name``, which were changed while it was in memory."""


class OneAtATime:
    """Keeps one of ``units`` of a model on ``device``, the others in their ``home``.

    A unit that is run stays until another one is, so that it can be worked on after a pass that reached it.
    ``watch`` is called for each unit that is brought in.
    """

    def __init__(self, units: Mapping[str, torch.nn.Module], home: Home, device: str) -> None:
        self._units, self._home, self._device = units, home, device
        self.watch: Callable[[], None] = lambda: None
        self._present: str | None = None
        self._versions = 0
        for name, unit in units.items():
            unit.to_empty(device="meta")
            unit.register_forward_pre_hook(lambda *_, name=name: self.enter(name))

    def __len__(self) -> int:
        return len(self._units)

    @property
    def present(self) -> str | None:
        """The unit that is in memory."""
        return self._present

    def enter(self, name: str) -> None:
        """Bring the unit ``name`` into memory, and the one before it out."""
        if name == self._present:
            return
        self.leave()
        unit = self._units[name]
        state = {key: part.to(self._device) for key, part in self._home.fetch(name, unit).items()}
        _assign(unit, state, name)
        self._present, self._versions = name, _versions(unit)
        self.watch()

    def leave(self) -> None:
        """Give up the memory of the unit that is present; what was changed in it goes home first."""
        if self._present is None:
            return
        name, self._present = self._present, None
        unit = self._units[name]
        if _versions(unit) != self._versions:
            self._home.store(name, dict(unit.state_dict()))
        unit.to_empty(device="meta")


class DiskHome:
    """Units as ``source`` has them; changed ones in a folder below ``scratch``, removed with this object."""

    def __init__(self, source: Source, scratch: Path | None = None) -> None:
        self._source, self._scratch = source, scratch
        self._changed: dict[str, Path] = {}

    def fetch(self, name: str, unit: torch.nn.Module) -> State:
        if name in self._changed:
            found: State = load_file(self._changed[name])
            return found
        return {key: self._source.tensor(f"{name}.{key}") for key in unit.state_dict()}

    def store(self, name: str, state: State) -> None:
        if not self._changed:
            self._folder = Path(tempfile.mkdtemp(prefix="wafervlm-units-", dir=self._scratch))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._changed[name] = self._folder / f"{name}.safetensors"
        tensors = {key: part.detach().cpu().contiguous() for key, part in state.items()}
        save_file(tensors, self._changed[name])


class HostHome:
    """Units in the memory of the host, taken from a model that is loaded there."""

    def __init__(self, units: Mapping[str, torch.nn.Module]) -> None:
        self._states = {name: dict(unit.state_dict()) for name, unit in units.items()}

    def fetch(self, name: str, unit: torch.nn.Module) -> State:
        return self._states[name]

    def store(self, name: str, state: State) -> None:
        self._states[name] = {key: part.detach().cpu() for key, part in state.items()}


class RowEmbedding(torch.nn.Module):
    """An embedding whose rows are read from ``source`` as they are asked for."""

    def __init__(self, source: Source, name: str, device: str) -> None:
        super().__init__()
        self._source, self._name, self._device = source, name, device

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        unique, places = ids.unique(return_inverse=True)
        table = torch.cat([self._source.rows(self._name, i, i + 1) for i in unique.tolist()])
        return table.to(self._device)[places]


class RowHead(torch.nn.Module):
    """An output head (V, D) that is read from ``source`` some rows at a time."""

    def __init__(self, source: Source, name: str, vocabulary: int) -> None:
        super().__init__()
        self._source, self._name, self._vocabulary = source, name, vocabulary
        # For whoever asks for its type; not a parameter, since nothing is stored in it.
        self.weight = source.rows(name, 0, 1).to("meta")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([hidden @ rows.to(hidden.device).T for rows in self._rows()], dim=-1)

    def _rows(self) -> Iterator[torch.Tensor]:
        for start in range(0, self._vocabulary, ROWS):
            yield self._source.rows(self._name, start, min(start + ROWS, self._vocabulary))


def load_streamed(
    path: Path, family: Family, source: Source, *, dtype: str = "float32", device: str = "cpu"
) -> Checkpoint:
    """The checkpoint folder ``path`` with weights from ``source``, units read when they run.

    Its model gives what the same model loaded whole gives. Raises CheckpointError where the weights do not
    fit the configuration, which for most of them shows when they are first read.
    """
    processor = load_processor(path)
    model = empty_model(path, family, dtype)
    _place(model, source, device)
    return Checkpoint(model.eval(), processor, processor.tokenizer, family, path)


def empty_model(path: Path, family: Family, dtype: str = "float32") -> Any:
    """The model that ``path``'s config.json describes, its parameters without memory. Raises
    CheckpointError."""
    values = {key: value for key, value in read_config(path).items() if key != "quantization_config"}
    try:
        settings = family.model.config_class.from_dict(values)
        with quiet_transformers(), init_empty_weights(include_buffers=False):
            return family.model._from_config(
                settings, attn_implementation="sdpa", dtype=getattr(torch, dtype)
            )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path / CONFIG} does not describe a model: {error}") from None


def units_of(model: Any) -> dict[str, torch.nn.Module]:
    """The decoder layers, vision blocks and other members of lists of modules, by name."""
    return {
        f"{name}.{place}": unit
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
        for place, unit in module.named_children()
    }


def residency_of(checkpoint: Checkpoint) -> OneAtATime | None:
    """What keeps one unit of the model of ``checkpoint`` in memory; None for one that is there whole."""
    found: OneAtATime | None = getattr(checkpoint.network, "_residency", None)
    return found


def bring_in(model: Any, unit: str) -> None:
    """Bring the ``unit`` of ``model`` into memory where only one is there at a time; else it is there."""
    residency: OneAtATime | None = getattr(model, "_residency", None)
    if residency is not None:
        residency.enter(unit)


def keep_one_layer(checkpoint: Checkpoint, device: str) -> OneAtATime:
    """Offload a model that was loaded to the host: all but its units go to ``device``, and each unit while
    it runs. ``checkpoint.model`` is changed in place."""
    units = units_of(checkpoint.model)
    home = HostHome(units)
    residency = OneAtATime(units, home, device)
    inside = {id(part) for unit in units.values() for part in (*unit.parameters(), *unit.buffers())}
    _move(checkpoint.model, device, inside)
    checkpoint.model._residency = residency
    return residency


def _place(model: Any, source: Source, device: str) -> None:
    """Give ``model``, which is empty, everything that stays, and its units when they run."""
    text, vocabulary = model.model.language_model, model.config.get_text_config().vocab_size
    name = "model.language_model.embed_tokens.weight"
    head = name if model.config.tie_word_embeddings or "lm_head.weight" not in source else "lm_head.weight"
    width = model.config.get_text_config().hidden_size
    for wanted in {name, head}:
        found = tuple(source.rows(wanted, 0, 1).shape[1:])
        if found != (width,):
            raise CheckpointError(
                f"{wanted} has rows of {found} and the configuration says {width}; fetch the checkpoint again"
            )
    text.embed_tokens = RowEmbedding(source, name, device)
    model.lm_head = RowHead(source, head, vocabulary)
    units = units_of(model)
    inside = tuple(f"{unit}." for unit in units)
    staying = {key: source.tensor(key) for key in model.state_dict() if not key.startswith(inside)}
    _assign(model, staying, str(model.config.model_type), strict=False)
    model._residency = OneAtATime(units, DiskHome(source), device)
    _move(model, device, {id(part) for unit in units.values() for part in unit.parameters()})


def _move(model: Any, device: str, left: set[int]) -> None:
    """Put what belongs to ``model`` on ``device``, but for the tensors whose identities are in ``left``."""
    moved: dict[int, torch.Tensor] = {}  # by identity, so that tied weights stay one
    for module in model.modules():
        for parts in (module._parameters, module._buffers):
            for key, part in parts.items():
                if part is None or id(part) in left:
                    continue
                if id(part) not in moved:
                    data = part.data.to(device)
                    moved[id(part)] = torch.nn.Parameter(data) if parts is module._parameters else data
                parts[key] = moved[id(part)]


def _assign(module: torch.nn.Module, state: State, name: str, *, strict: bool = True) -> None:
    try:
        module.load_state_dict(state, strict=strict, assign=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"the weights of {name} do not fit the configuration: {text[:200]}") from None


def _versions(unit: torch.nn.Module) -> int:
    """Grows with every change in place."""
    return sum(part._version for part in unit.parameters())
