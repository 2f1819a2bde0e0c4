"""How an archive is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafervlm.errors import UsageError

RUNTIMES = ("onnx", "onnx-cuda", "openvino", "tensorrt")


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """How an archive is scored: ``actors`` on ``device`` cpu or cuda (None: one for each GPU, or on the CPU
    one for each ``threads`` cores); ``threads`` of each actor; ``part_maps`` maps in one Parquet file;
    ``bins`` maps the codes of files to 0, 1 and 2; ``address`` is that of a running Ray, None starts one
    here. ``runtime`` is onnx, onnx-cuda, openvino or tensorrt, None tensorrt where ``engine``, a folder that
    ``wafervlm engine`` built, is given, else onnx: all actors answer on the same. Those of onnx-cuda and
    tensorrt are on the GPU whatever ``device`` says. Raises UsageError."""

    bundle: Path | None = None
    device: str = "cpu"
    actors: int | None = None
    threads: int = 1
    part_maps: int = 4096
    bins: Mapping[str, int] | None = None
    address: str | None = None
    runtime: str | None = None
    engine: Path | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise UsageError(f"device is {self.device!r}; it must be cpu or cuda")
        if self.runtime not in (None, *RUNTIMES):
            raise UsageError(
                f"runtime is {self.runtime!r}; it must be one of {', '.join(RUNTIMES)}: actors must all "
                "answer on the same, so none chooses for itself"
            )
        if self.name == "tensorrt" and self.engine is None:
            raise UsageError("runtime 'tensorrt' runs an engine, and none is named; name one (--engine)")
        if self.name != "tensorrt" and self.engine is not None:
            raise UsageError(
                f"runtime {self.name!r} runs no engine; leave the engine out, or take runtime 'tensorrt'"
            )
        if self.bins is not None:
            object.__setattr__(self, "bins", dict(self.bins))  # which another process can be given
        for name in ("actors", "threads", "part_maps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more")

    @property
    def name(self) -> str:
        """The runtime that all actors answer on."""
        return self.runtime or ("onnx" if self.engine is None else "tensorrt")

    @property
    def on_gpu(self) -> bool:
        """Whether each actor needs a GPU of its own."""
        return self.device == "cuda" or self.name in ("onnx-cuda", "tensorrt")

    @property
    def loading(self) -> dict[str, Any]:
        """What each actor loads the bundle with: arguments of ``wafervlm.load``."""
        options: dict[str, Any] = {"device": self.device, "threads": self.threads, "runtime": self.name}
        return options if self.engine is None else {**options, "engine": self.engine.resolve()}
