"""WaferVLM: a bundle made ready to answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wafervlm.answers import answer_of, are_scores, probabilities
from wafervlm.bundle import Bundle
from wafervlm.deadline import deadline_of
from wafervlm.errors import ClosedError, InputError, UsageError, VerificationError
from wafervlm.manifest import Manifest
from wafervlm.prediction import Prediction
from wafervlm.render import RgbImage, render
from wafervlm.runtimes import Runtime
from wafervlm.task import Task
from wafervlm.view import View, Wafer, check_images, make_view
from wafervlm.wafermap import WaferMap

if TYPE_CHECKING:
    from wafervlm.words.description import Description
    from wafervlm.words.stream import DescriptionStream, Speaker

CHUNK = 16
"""Images in one run; longer lists are cut, so that memory does not grow with the list."""


class WaferVLM:
    """A model that answers what is wrong with a wafer. Made by ``wafervlm.load``; threads may share it."""

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime,
        *,
        speaker: Callable[[], Speaker] | None = None,
        runtime_name: str = "",
    ) -> None:
        self._bundle = bundle
        self._runtime_name = runtime_name
        self._chunk = min(CHUNK, runtime.max_batch or CHUNK)
        self._task_digest = bundle.manifest.task_digest
        self._runtime: Runtime | None = runtime
        self._open_speaker, self._words_lock = speaker, threading.Lock()
        self._speaker: Speaker | None = None

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def runtime(self) -> str:
        """What executes the graph; where "auto" chose it, why."""
        return self._runtime_name

    @property
    def task(self) -> Task:
        """The question the model is locked to."""
        return self._bundle.manifest.task

    @property
    def digest(self) -> str:
        """sha256 of the bundle's manifest, 64 hex digits: the bundle's name in an audit trail."""
        return self._bundle.digest

    def predict(
        self,
        wafer: Wafer,
        *,
        timeout: float | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> Prediction:
        """Answer for one wafer: a WaferMap, an (H, W) array of 0 no die / 1 pass / 2 fail, or a path.

        ``timeout`` is in seconds and stops the call. ``foreign`` lets an image file in whose colours are
        not the task's; its answer has ``locked`` False. ``bins`` maps the bin codes of a text file to
        0, 1 and 2. Raises InputError, PredictionTimeout and ClosedError.
        """
        return next(self._answers([wafer], timeout, foreign, bins))

    def predict_batch(
        self,
        wafers: Iterable[Wafer],
        *,
        timeout: float | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> list[Prediction]:
        """Answer for each of ``wafers``, in order; ``timeout`` is for all together.

        Arguments and errors are those of ``predict``. In ``timing_ms`` the time of a run is shared
        equally by the images that it took at once.
        """
        if isinstance(wafers, (str, Path, WaferMap)):
            raise UsageError(f"predict_batch takes a list, not one {type(wafers).__name__}; use predict")
        return list(self._answers(list(wafers), timeout, foreign, bins))

    def describe(
        self,
        wafer: Wafer,
        question: str | None = None,
        *,
        check: bool = True,
        redraws: int = 0,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        timeout: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> Description:
        """Say in words what is on one wafer: where, what, and candidate causes, in three parts; or answer
        ``question`` about it.

        With ``check`` every claim of the text is checked against the dies (``wafervlm.claims``): those that
        they contradict are struck from it and listed in ``struck``, the others in ``claims``. An answer of
        which something would be struck is drawn anew, up to ``redraws`` times, and the best is taken. An
        image that is not a wafer map has no dies to check. Causes are candidates, never checked.

        Takes a bundle that was exported with words, and the extra ``[words]``; the first call opens the
        graphs for it, those of the engine where one classifies, which must have been built with words.
        Greedy at ``temperature`` 0; above it tokens are drawn, among the ``top_k`` likeliest (0: all) that
        make up the probability ``top_p``, the same for the same ``seed``. It ends at the model's own end, at
        ``max_tokens`` or the end of the context, or once ``cancelled``, asked before each token, says yes.
        A wafer with an orientation mark is shown with the mark at the bottom, so directions are the tool's.
        The wafer, ``timeout``, for each answer, ``foreign`` and ``bins`` are as in ``predict``. Raises
        UsageError for a bundle or an engine without words and an argument that cannot be meant, InputError
        for a question longer than the context, PredictionTimeout, MissingDependencyError and ClosedError.
        """

        def answer(temperature: float, seed: int | None) -> Description:
            return self.describe_stream(
                wafer,
                question,
                max_tokens=max_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                timeout=timeout,
                cancelled=cancelled,
                foreign=foreign,
                bins=bins,
            ).whole()

        from wafervlm.words.checking import best_answer

        return best_answer(answer, check=check, redraws=redraws, temperature=temperature, seed=seed)

    def describe_stream(
        self,
        wafer: Wafer,
        question: str | None = None,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        timeout: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        foreign: bool = False,
        bins: Mapping[str, int] | None = None,
    ) -> DescriptionStream:
        """Generate as ``describe`` does, unchecked, and return the answer as an iterator over pieces of its
        text, each as soon as it is certain; no piece ends in half a character. Closing it, from any thread,
        ends it. Arguments and errors are those of ``describe``."""
        from wafervlm.words.question import DESCRIBE_QUESTION
        from wafervlm.words.run import Limits
        from wafervlm.words.sampling import Sampling
        from wafervlm.words.stream import Asked

        sampling = Sampling(temperature, top_k, top_p, seed)
        limits = Limits(max_tokens, deadline_of(timeout), cancelled)
        speaker = self._words()
        view = make_view(wafer, self.task, foreign, bins)
        shown = view.wafer
        image = render(shown.upright, self.task.render) if shown and shown.upright_turns else view.image
        spent = {"read": view.read / 1e6, "render": view.render / 1e6}
        asked = Asked(
            check_images(image[None], self.task),
            DESCRIBE_QUESTION if question is None else question,
            view.name if shown is None else shown.id,
            shown is not None,
            spent,
            shown,
        )
        return speaker.answer(asked, sampling, limits)

    def label_log_probs(self, images: RgbImage, *, timeout: float | None = None) -> NDArray[np.float32]:
        """Label log-probabilities float32 (B, L), in the order of the task's labels, before temperature.

        ``images`` are uint8 (B, H, W, 3) RGB of the size that the task draws. Raises ImageError,
        VerificationError where the graph gives no probabilities, PredictionTimeout and ClosedError.
        """
        deadline = deadline_of(timeout)
        images = check_images(images, self.task)
        chunk = self._chunk
        parts = [self._run(images[i : i + chunk], deadline) for i in range(0, len(images), chunk)]
        return np.concatenate(parts) if parts else np.empty((0, len(self.task.labels)), np.float32)

    def close(self) -> None:
        """Free the model's memory; predictions of other threads end first. Closing twice does nothing."""
        with self._words_lock:  # or what a describe is opening just now would stay
            runtime, speaker = self._runtime, self._speaker
            self._runtime = self._speaker = None
        for held in (speaker, runtime):
            if held is not None:
                held.close()

    def __enter__(self) -> WaferVLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        graph, state = self.manifest.graph, "closed" if self._runtime is None else "ready"
        return f"<WaferVLM {self.manifest.name} {graph.precision} {self.digest[:12]}, {state}>"

    def _answers(
        self, wafers: Sequence[Wafer], timeout: float | None, foreign: bool, bins: Mapping[str, int] | None
    ) -> Iterator[Prediction]:
        deadline = deadline_of(timeout)
        self._ready()
        for first in range(0, len(wafers), self._chunk):
            started = time.perf_counter_ns()
            views = []
            for index, wafer in enumerate(wafers[first : first + self._chunk], first):
                try:
                    views.append(make_view(wafer, self.task, foreign, bins))
                except InputError as error:
                    if len(wafers) == 1:
                        raise
                    raise type(error)(f"item {index} of the batch: {error}") from error
            before_run = time.perf_counter_ns()
            scores = self._run(check_images(np.stack([view.image for view in views]), self.task), deadline)
            found = probabilities(self.task, scores, self.manifest.temperature)
            now = time.perf_counter_ns()
            run = now - before_run
            rest = now - started - run - sum(view.read + view.render for view in views)
            for view, row in zip(views, found, strict=True):
                yield self._prediction(view, row, run / len(views), rest / len(views))

    def _prediction(self, view: View, row: NDArray[np.float64], run: float, rest: float) -> Prediction:
        spent = {"read": view.read, "render": view.render, "run": run}
        return Prediction(
            **answer_of(self.task, row, self.manifest.threshold),
            timing_ms={key: ns / 1e6 for key, ns in {**spent, "total": sum(spent.values()) + rest}.items()},
            id=view.wafer.id if view.wafer is not None else view.name,
            locked=view.wafer is not None,
            task=self._task_digest,
            bundle=self.digest,
            wafer=view.wafer,
            image=view.image if view.wafer is None else None,
        )

    def _ready(self) -> Runtime:
        if self._runtime is None:
            raise ClosedError("this model was closed; load it again")
        return self._runtime

    def _words(self) -> Speaker:
        """What generates text, opened at the first call: its weights are memory of their own."""
        with self._words_lock:
            self._ready()
            if self._speaker is None:
                if self._open_speaker is None:
                    raise UsageError("this model only classifies; load it with wafervlm.load")
                self._speaker = self._open_speaker()
            return self._speaker

    def _run(self, images: RgbImage, deadline: float | None) -> NDArray[np.float32]:
        scores = self._ready().run(images, deadline)
        wanted = (len(images), len(self.task.labels))
        if scores.shape != wanted or not are_scores(self.task, scores):
            raise VerificationError(
                f"bundle {self._bundle.path} gave scores that are no probabilities over {wanted[1]} labels "
                "(not finite, or of a wrong sum); run: wafervlm verify"
            )
        return scores
