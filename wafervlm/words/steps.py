"""Steps: the graphs that generate text, on ONNX Runtime, and the keys and values they have made so far.

The features graph reads the image once: ``image`` (1, H, W, 3) uint8 to ``features`` (F, n + 1, width)
float32. The step graph reads T tokens after P others: ``tokens`` (1, T) int64, ``positions`` (1, T, 3)
int64, ``image_rows`` (T,) int64, ``features``, ``mask`` (T, P + T) float32 and for each layer i
``past_key.i`` and ``past_value.i`` (1, P, K) float32; it gives ``logits`` (1, V) of the last token and
``key.i`` and ``value.i`` (1, T, K) of the T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.errors import ManifestError
from wafervlm.render import RgbImage
from wafervlm.runtimes.onnx import import_onnxruntime, open_session
from wafervlm.words.section import Words

IMAGE, FEATURES, LOGITS = "image", "features", "logits"
INPUTS = ("tokens", "positions", "image_rows", FEATURES, "mask")
# exp(-1e4) is 0 in every float format, and -1e4 is a finite value in each of them.
HIDDEN = np.float32(-1e4)

Floats = NDArray[np.float32]


class Cache:
    """Keys and values of the ``length`` tokens read so far, with room for ``capacity``.

    Memory is asked for at once and used as it fills. Setting ``length`` back forgets the last tokens.
    """

    def __init__(self, names: tuple[str, ...], width: int, capacity: int) -> None:
        self.length, self.capacity = 0, capacity
        self._arrays = {name: np.empty((1, capacity, width), np.float32) for name in names}

    def past(self) -> dict[str, Floats]:
        """The step graph's inputs ``past_key.i`` and ``past_value.i``; views, nothing is copied."""
        return {f"past_{name}": array[:, : self.length] for name, array in self._arrays.items()}

    def append(self, new: list[Floats]) -> None:
        """Take in the step graph's outputs ``key.i`` and ``value.i``."""
        stop = self.length + new[0].shape[1]
        for array, values in zip(self._arrays.values(), new, strict=True):
            array[:, self.length : stop] = values
        self.length = stop


class Running(Protocol):
    """One generation: what calls a graph, so that it can be told to stop while it runs."""

    def __call__(self, session: Any, outputs: list[str], inputs: dict[str, Any]) -> list[Any]: ...


class Steps:
    """The two graphs of a bundle with words, ready to run. Threads may share it, each with its own Cache.

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
        self._where = bundle.path / words.step
        self.run_options: Callable[[], Any] = import_onnxruntime().RunOptions
        level = bundle.manifest.graph.accuracy_level if accuracy_level is None else accuracy_level
        self._features_session, self._step_session = (
            open_session(bundle, file, device=device, threads=threads, accuracy_level=level)
            for file in (words.features, words.step)
        )
        self._zeros_row = words.image_tokens
        self._names, self._width = self._check_contract(bundle, words)
        self._outputs = [LOGITS, *self._names]

    def cache(self, capacity: int) -> Cache:
        """An empty cache with room for ``capacity`` tokens."""
        return Cache(self._names, self._width, capacity)

    def features(self, image: RgbImage, run: Running) -> Floats:
        """What the vision tower sees in ``image`` (1, H, W, 3) uint8."""
        found: Floats = run(self._features_session, [FEATURES], {IMAGE: image})[0]
        return found

    def step(
        self,
        cache: Cache,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        features: Floats,
        run: Running,
    ) -> Floats:
        """Logits (V,) after ``tokens`` (T,), whose keys and values go into ``cache``."""
        count = len(tokens)
        mask = np.zeros((count, cache.length + count), np.float32)
        if count > 1:
            mask[:, cache.length :][np.triu_indices(count, 1)] = HIDDEN
        inputs = dict(zip(INPUTS, (tokens[None], positions[None], rows, features, mask), strict=True))
        logits, *new = run(self._step_session, self._outputs, inputs | cache.past())
        cache.append(new)
        last: Floats = logits[0]
        return last

    def word(self, cache: Cache, token: int, position: int, features: Floats, run: Running) -> Floats:
        """Logits (V,) after one more ``token`` of text at ``position``."""
        ids, rows = np.array([token], np.int64), np.array([self._zeros_row], np.int64)
        return self.step(cache, ids, np.full((1, 3), position, np.int64), rows, features, run)

    def _check_contract(self, bundle: Bundle, words: Words) -> tuple[tuple[str, ...], int]:
        """The names of the outputs beside the logits, and the width of keys and values."""
        spec = bundle.manifest.task.render
        inputs = {item.name: item.shape for item in self._step_session.get_inputs()}
        names = tuple(item.name for item in self._step_session.get_outputs())[1:]
        image = {item.name: item.shape for item in self._features_session.get_inputs()}
        features = {item.name: item.shape for item in self._features_session.get_outputs()}
        past = {name: shape for name, shape in inputs.items() if name.startswith("past_")}
        good = (
            image == {IMAGE: [1, spec.height, spec.width, 3]}
            and features.keys() == {FEATURES}
            and inputs.keys() == {*INPUTS, *past}
            and past.keys() == {f"past_{name}" for name in names}
            and inputs[FEATURES][1] == words.image_tokens + 1
            and len({shape[2] for shape in past.values()}) == 1
        )
        if not good:
            raise ManifestError(
                f"{self._where} and {words.features} do not take and give what the manifest's words ask for; "
                "export the bundle again"
            )
        return names, int(next(iter(past.values()))[2])
