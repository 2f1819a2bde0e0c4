"""The graphs that generate text on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wafervlm.bundle import Bundle
from wafervlm.errors import ManifestError
from wafervlm.render import RgbImage
from wafervlm.runtimes.onnx import import_onnxruntime, open_session, run_error
from wafervlm.words.run import Run
from wafervlm.words.section import Words
from wafervlm.words.steps import (
    FEATURES,
    IMAGE,
    INPUTS,
    LOGITS,
    PAST,
    Floats,
    Whole,
    causal_mask,
)


class OnnxSteps:
    """See ``wafervlm.words.steps.Steps``.

    The bundle stores its weights once, yet a session of ONNX Runtime packs them into memory of its own: given
    the same OrtValues, two sessions held more (2026-11: 430 MB against 355), and without packing a step in
    4 bits took 70 times as long. So these are opened only for a bundle that is asked for words.
    """

    def __init__(
        self,
        bundle: Bundle,
        words: Words,
        *,
        device: str = "cpu",
        threads: int | None = None,
        accuracy_level: int | None = None,
    ) -> None:
        self.about = f"onnx on {device}"
        self._where = bundle.path / words.step
        self._options: Callable[[], Any] = import_onnxruntime().RunOptions
        level = bundle.manifest.graph.accuracy_level if accuracy_level is None else accuracy_level
        self._features, self._step = (
            open_session(bundle, file, device=device, threads=threads, accuracy_level=level)
            for file in (words.features, words.step)
        )
        self._text_row = words.image_tokens
        self._names, self._width = self._check_contract(bundle, words)

    def read(self, image: RgbImage, capacity: int, run: Run) -> OnnxReader:
        calls = _Calls(run, self._options())
        features = calls(self._features, [FEATURES], {IMAGE: image})[0]
        cache = Cache(self._names, self._width, capacity)
        return OnnxReader(self._step, calls, features, cache, self._text_row)

    def close(self) -> None:
        """Nothing is given back before the last answer under way has ended."""

    def _check_contract(self, bundle: Bundle, words: Words) -> tuple[tuple[str, ...], int]:
        """The names of the outputs beside the logits, and the width of keys and values."""
        spec = bundle.manifest.task.render
        inputs = {item.name: item.shape for item in self._step.get_inputs()}
        names = tuple(item.name for item in self._step.get_outputs())[1:]
        image = {item.name: item.shape for item in self._features.get_inputs()}
        features = {item.name: item.shape for item in self._features.get_outputs()}
        past = {name: shape for name, shape in inputs.items() if name.startswith(PAST)}
        good = (
            image == {IMAGE: [1, spec.height, spec.width, 3]}
            and features.keys() == {FEATURES}
            and inputs.keys() == {*INPUTS, *past}
            and past.keys() == {f"{PAST}{name}" for name in names}
            and inputs[FEATURES][1] == words.image_tokens + 1
            and len({shape[2] for shape in past.values()}) == 1
        )
        if not good:
            raise ManifestError(
                f"{self._where} and {words.features} do not take and give what the manifest's words ask for; "
                "export the bundle again"
            )
        return names, int(next(iter(past.values()))[2])


class OnnxReader:
    """See ``wafervlm.words.steps.Reader``."""

    def __init__(self, session: Any, calls: _Calls, features: Floats, cache: Cache, text_row: int) -> None:
        self._session, self._calls = session, calls
        self._features, self._cache, self._text_row = features, cache, text_row

    @property
    def length(self) -> int:
        return self._cache.length

    @length.setter
    def length(self, length: int) -> None:
        self._cache.length = length

    def step(self, tokens: Whole, positions: Whole, rows: Whole) -> Floats:
        cache = self._cache
        mask = causal_mask(len(tokens), cache.length)
        inputs = dict(zip(INPUTS, (tokens[None], positions[None], rows, self._features, mask), strict=True))
        logits, *new = self._calls(self._session, [LOGITS, *cache.names], inputs | cache.past())
        cache.append(new)
        last: Floats = logits[0]
        return last

    def word(self, token: int, position: int) -> Floats:
        ids, rows = np.array([token], np.int64), np.array([self._text_row], np.int64)
        return self.step(ids, np.full((1, 3), position, np.int64), rows)

    def close(self) -> None:
        """Python's own memory: it goes when the last reference does."""


class Cache:
    """Keys and values of the ``length`` tokens read so far, with room for ``capacity``.

    Memory is asked for at once and used as it fills.
    """

    def __init__(self, names: tuple[str, ...], width: int, capacity: int) -> None:
        self.names, self.length = names, 0
        self._arrays = {name: np.empty((1, capacity, width), np.float32) for name in names}

    def past(self) -> dict[str, Floats]:
        """The step graph's inputs ``past_key.i`` and ``past_value.i``; views, nothing is copied."""
        return {f"{PAST}{name}": array[:, : self.length] for name, array in self._arrays.items()}

    def append(self, new: list[Floats]) -> None:
        """Take in the step graph's outputs ``key.i`` and ``value.i``."""
        stop = self.length + new[0].shape[1]
        for array, values in zip(self._arrays.values(), new, strict=True):
            array[:, self.length : stop] = values
        self.length = stop


class _Calls:
    """Calls sessions for one run, which can end them while they are under way."""

    def __init__(self, run: Run, options: Any) -> None:
        self._run, self._options = run, options
        run.when_ended(self._end)

    def __call__(self, session: Any, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        self._run.begin()
        try:
            found: list[Any] = session.run(outputs, inputs, self._options)
        except Exception as error:
            self._run.check()
            raise run_error(error, "the text; ask a shorter question, or close other programs") from error
        return found

    def _end(self) -> None:
        self._options.terminate = True
