"""Asking a bundle in free words, and the answer as a stream of pieces of text."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType

from wafervlm.bundle import Bundle
from wafervlm.errors import ClosedError, InputError
from wafervlm.render import RgbImage
from wafervlm.wafermap import WaferMap
from wafervlm.words.description import Description
from wafervlm.words.generation import Generation
from wafervlm.words.run import Limits, Run
from wafervlm.words.sampling import Chooser, Sampling
from wafervlm.words.section import Words
from wafervlm.words.steps import Steps
from wafervlm.words.text import Language, Pieces


@dataclass(frozen=True, slots=True)
class Asked:
    """A ``question`` about an ``image`` (1, H, W, 3) uint8; ``id`` and ``locked`` as in a Description, and
    the milliseconds spent so far; ``wafer`` is None for an image that is not a wafer map."""

    image: RgbImage
    question: str
    id: str = ""
    locked: bool = True
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    wafer: WaferMap | None = None


class Speaker:
    """A bundle made ready to generate text: ``steps`` execute its graphs, and ``runtime`` says what that is.
    Threads may share it. Raises what reading the tokenizer raises."""

    def __init__(self, bundle: Bundle, words: Words, steps: Steps) -> None:
        self._bundle, self._words, self._steps = bundle, words, steps
        self.runtime = steps.about
        self._language = Language(bundle, words)

    def close(self) -> None:
        """Give back what the graphs hold."""
        self._steps.close()

    def answer(self, asked: Asked, sampling: Sampling, limits: Limits) -> DescriptionStream:
        """Begin to answer. Raises UsageError for a question that is no text, InputError for one longer than
        the context."""
        prompt = self._language.prompt(asked.question)
        room = self._words.context - len(prompt.ids)
        if room < 1:
            raise InputError(
                f"the question makes {len(prompt.ids)} tokens with the image, and this bundle reads at most "
                f"{self._words.context} together with the answer; ask a shorter one"
            )
        chooser = Chooser(sampling, prompt.ids, self._words.repetition_penalty)
        run = Run(limits)
        maximum = min(limits.max_tokens, room)
        generation = Generation(self._steps, run, prompt, chooser, self._words.stop, maximum)
        unsaid = Description(
            text="",
            question=asked.question,
            tokens=(),
            finish="cancelled",
            prompt_tokens=len(prompt.ids),
            timing_ms=asked.timing_ms,
            id=asked.id,
            locked=asked.locked,
            task=self._bundle.manifest.task_digest,
            bundle=self._bundle.digest,
            runtime=self.runtime,
            wafer=asked.wafer,
        )
        return DescriptionStream(generation, run, asked.image, Pieces(self._language), unsaid)


class DescriptionStream(Iterator[str]):
    """An answer that is being generated: an iterator over pieces of text, each as soon as it is certain.

    Nothing is computed before the next piece is asked for. ``close``, from any thread, ends the answer; so
    does leaving a ``with`` block. Once it has ended, ``result`` is the whole of it.
    """

    def __init__(
        self, generation: Generation, run: Run, image: RgbImage, pieces: Pieces, unsaid: Description
    ) -> None:
        self._generation, self._run, self._unsaid = generation, run, unsaid
        self._result: Description | None = None
        self._turn = threading.Lock()
        self._texts = self._generate(image, pieces)

    def __next__(self) -> str:
        with self._turn:
            return next(self._texts)

    def __enter__(self) -> DescriptionStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def result(self) -> Description:
        """What was said. Raises ClosedError while there may be more, and after an error."""
        if self._result is None:
            raise ClosedError("the answer has not ended; take all of its pieces first, or close it")
        return self._result

    def whole(self) -> Description:
        """Generate what is left, and return the whole of it."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """End the answer where it is; a step that runs in another thread is ended too. Closing twice does
        nothing."""
        self._run.cancel()
        for _ in self:
            pass

    def _generate(self, image: RgbImage, pieces: Pieces) -> Iterator[str]:
        texts: list[str] = []
        for token in self._generation.tokens(image):
            if piece := pieces.add(token):
                texts.append(piece)
                yield piece
        rest = pieces.rest()
        timing = {**self._unsaid.timing_ms, **self._generation.timing_ms}
        self._result = replace(
            self._unsaid,
            text="".join([*texts, rest]),
            tokens=tuple(self._generation.said),
            finish=self._generation.finish,
            timing_ms={**timing, "total": sum(timing.values())},
        )
        if rest:
            yield rest
