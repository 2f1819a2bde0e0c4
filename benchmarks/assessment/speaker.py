"""Asking in words: what every subject does, and a bundle through the station."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from benchmarks.scores import bundle_log_probs
from benchmarks.statistics import Floats
from train.dataset import Sample
from train.vqa.replies import Reply
from wafervlm.errors import UsageError
from wafervlm.loading import load
from wafervlm.wafermap import WaferMap


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A ``question`` about one wafer, after the ``system`` turn where there is one."""

    wafer: WaferMap
    question: str
    system: str | None = None


class Answering(Protocol):
    """A subject that is ready to answer. ``about`` says in words what runs, ``numbers`` what it computes in,
    ``task`` is the digest of what draws its images: answers of other numbers or images may differ."""

    about: str
    numbers: str
    task: str

    def answers(self, asked: Sequence[Asked], max_tokens: int) -> Iterator[tuple[int, Reply]]:
        """Answer greedily, as generated and before any check: the place in ``asked`` and the answer, in any
        order. Raises UsageError for a system turn that the subject cannot be given."""
        ...

    def log_probs(self, samples: Sequence[Sample], what: str) -> Floats:
        """Label log-probabilities (N, L) float64 of the maps, before temperature."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Station:
    """A bundle through ``describe_stream``: no torch, one wafer after the other."""

    def __init__(self, bundle: Path, threads: int) -> None:
        self.model = load(bundle, threads=threads)
        graph = self.model.manifest.graph
        self.about = f"bundle, ONNX Runtime, {graph.precision}"
        self.numbers, self.task = "onnx", self.model.manifest.task_digest

    def answers(self, asked: Sequence[Asked], max_tokens: int) -> Iterator[tuple[int, Reply]]:
        for place, one in enumerate(asked):
            if one.system is not None:
                raise UsageError(
                    "a bundle is asked as on a station, without a system turn; name a checkpoint"
                )
            with self.model.describe_stream(one.wafer, one.question, max_tokens=max_tokens) as stream:
                for _ in stream:
                    pass
                said = stream.result
            yield (
                place,
                Reply(
                    said.text,
                    "stop" if said.finish == "stop" else "length",
                    said.prompt_tokens,
                    len(said.tokens),
                ),
            )

    def log_probs(self, samples: Sequence[Sample], what: str) -> Floats:
        return bundle_log_probs(self.model, samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.model.close()
