"""What is measured: shapes, contenders, batch sizes, and how long each may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wafervlm.errors import UsageError

LARGEST_BATCH = 16
DTYPES = ("bfloat16", "float32", "float16")
FORMS = ("dense", "int4", "int4-triton", "fp8")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model to measure: the ``folder`` of its configuration and tokenizer below the configuration folder,
    and the side of its square images in ``pixels``."""

    folder: str
    pixels: int


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "4b": Shape("qwen3-vl-4b", 256),
        # Not 256: that is no multiple of 28, and the image would be resampled.
        "7b": Shape("qwen2.5-vl-7b", 252),
    }
)
NANO = "nano"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run is made. Raises UsageError."""

    shapes: tuple[str, ...] = ("4b", "7b")
    config_folder: Path | None = None
    """Holds the folders named in SHAPES: config.json, tokenizer and processor files, no weights."""
    checkpoint: Path | None = None
    """For nano: a folder with trained weights."""
    device: str = "cuda"
    dtype: str = "bfloat16"
    """What full precision is."""
    batches: tuple[int, ...] = (1, 4, 16)
    maps: int = 32
    """Different wafer maps; every call gets others than the one before."""
    answer_tokens: int = 0
    """Tokens that generate writes; 0: as many as the task's answers have with the turn's end, on average for
    random weights, of the longest for trained ones."""
    group: int = 128
    """Input columns that share a scale in INT4."""
    row_seconds: float = 6.0
    """Time for the timed calls of a row."""
    budget: float = 540.0
    """Seconds for everything; what has not begun by then is skipped, and its row says so."""
    text_layers: int = 0
    """Decoder layers of a random model; 0: as the configuration says."""
    vision_layers: int = 0
    """Blocks of its vision tower; 0: as the configuration says."""
    gptq_layers: int = 2
    """Decoder layers that GPTQ is timed on; 0 leaves it out."""
    gptq_maps: int = 64
    compiled: bool = True
    """Whether the static pass is also run through torch.compile."""
    profile: bool = True
    bundles: tuple[Path, ...] = ()
    """Bundles to run with ONNX Runtime."""
    engines: tuple[Path, ...] = ()
    """Engine folders, one for each of ``bundles``."""
    seed: int = 0

    def __post_init__(self) -> None:
        known = (*SHAPES, NANO)
        if not (self.shapes or self.bundles) or any(name not in known for name in self.shapes):
            raise UsageError(f"shapes are {', '.join(self.shapes) or 'none'}; known are {', '.join(known)}")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not self.batches or any(not 1 <= size <= LARGEST_BATCH for size in self.batches):
            raise UsageError(f"batches are {self.batches}; each must be 1 to {LARGEST_BATCH}")
        if self.maps < max(self.batches):
            raise UsageError(f"{self.maps} maps do not fill a batch of {max(self.batches)}; give more --maps")
        if self.budget <= 0 or self.row_seconds <= 0:
            raise UsageError("the budget and the time of a row must be more than 0 seconds")
        if any(name in SHAPES for name in self.shapes) and self.config_folder is None:
            raise UsageError(
                "the 4b and 7b shapes need --config-folder, a folder that holds "
                + " and ".join(shape.folder for shape in SHAPES.values())
            )
        if self.engines and len(self.engines) != len(self.bundles):
            raise UsageError(f"{len(self.engines)} engines came with {len(self.bundles)} bundles; pair them")

    def to_dict(self) -> dict[str, Any]:
        """What decides on the figures, as plain values without paths: a result of other settings is another
        result."""
        values = asdict(self)
        for name in ("shapes", "config_folder", "checkpoint", "budget", "bundles", "engines"):
            del values[name]
        return {**values, "batches": list(self.batches)}
