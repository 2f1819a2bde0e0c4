"""The settings of a benchmark."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wafervlm.errors import SetupError, UsageError

QUICK_CALLS, QUICK_GENERATE = 30, 4


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is judged, on what, and how."""

    reference: Path
    """Full-precision checkpoint that the bundle was made from."""
    maps: Path
    """Labelled maps: a dataset folder (its part ``split``), a .npz, a folder of class folders."""
    bundle: Path | None = None
    """Bundle folder; the embedded nano bundle when None."""
    base: Path | None = None
    """Checkpoint before fine-tuning, or what ``zero_shot`` wrote of it: the zero-shot bars."""
    split: str = "test"
    natural: Path | None = None
    """Labelled maps in their natural mix, for screening, calibration and agreement."""
    natural_split_file: str | None = None
    """Split file, or the name of a committed one, whose part ``split`` is taken of ``natural``."""
    full_precision: Path | None = None
    """Bundle at full precision; exported from the reference when None."""
    threads: int = 2
    latency_maps: int = 200
    generate_maps: int = 20
    margin: float = 0.01
    """Loss of accuracy that is still called not worse, as a share."""
    quick: bool = False
    """Fewer maps and calls: a look, not a figure to report."""
    footprint: bool = True
    """Measure load time and memory of each contender in a fresh process."""
    device: str = "auto"
    """Where checkpoints are scored: cpu, cuda, or auto. Latency is always that of the CPU."""

    def __post_init__(self) -> None:
        for name in ("threads", "latency_maps", "generate_maps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.margin < 1:
            raise UsageError(f"margin is {self.margin}; it must be a share between 0 and 1, as 0.01")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SetupError("device is cuda and torch sees no GPU here; leave it out")

    def settled(self) -> BenchmarkConfig:
        """The settings in effect on this machine."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if not self.quick:
            return replace(self, device=device)
        calls, generate = min(self.latency_maps, QUICK_CALLS), min(self.generate_maps, QUICK_GENERATE)
        return replace(self, device=device, latency_maps=calls, generate_maps=generate)

    def without_paths(self) -> dict[str, Any]:
        """The settings without the paths, which say nothing elsewhere; provenance.json has their digests."""
        return {key: value for key, value in asdict(self).items() if not isinstance(value, Path)}
