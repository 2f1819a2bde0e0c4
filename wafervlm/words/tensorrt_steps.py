"""The graphs that generate text as an engine's, on the GPU.

Keys and values stay there: of each layer they lie one token after the other, so the step's input is the
filled beginning of that memory, and its output goes behind it. Nothing is copied back but the logits. Each of
the two profiles has a context of its own.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

import numpy as np

from wafervlm.bundle import Bundle
from wafervlm.engine import Engine, build_command
from wafervlm.engine_words import WordsEngines
from wafervlm.errors import ManifestError, ProviderError, ResourceError, SetupError, UsageError
from wafervlm.render import RgbImage
from wafervlm.runtimes.cuda import Memory, Stream, byte_size
from wafervlm.runtimes.tensorrt_api import ICudaEngine, IExecutionContext
from wafervlm.runtimes.tensorrt_build import is_memory
from wafervlm.runtimes.tensorrt_cache import KernelCache
from wafervlm.runtimes.tensorrt_device import Device, Held
from wafervlm.runtimes.tensorrt_loading import deserialise, find_place, make_contexts, no_memory
from wafervlm.runtimes.tensorrt_package import import_library
from wafervlm.words.run import Run
from wafervlm.words.section import Words
from wafervlm.words.steps import (
    FEATURES,
    IMAGE,
    INPUTS,
    LOGITS,
    MASK,
    PAST,
    POSITIONS,
    ROWS,
    TOKENS,
    Floats,
    Whole,
    causal_mask,
)

log = logging.getLogger(__name__)

NO_MASK = "no_mask"
"""A buffer of zeros, the mask of a single token, which sees all before it."""
_PROMPT, _WORD, _VISION = 0, 1, 2
_SECONDS_BETWEEN_CHECKS = 0.02


class TensorRTSteps:
    """See ``wafervlm.words.steps.Steps``. ``runtime_cache`` is as for ``TensorRTRuntime``."""

    def __init__(
        self, bundle: Bundle, words: Words, engine: Engine, *, runtime_cache: Path | None = None
    ) -> None:
        self.place = find_place(engine, bundle)
        self._engines = words_of(engine, bundle)
        self._library = import_library(engine.manifest.builder)
        self._words, self._engine = words, engine
        self.about = f"tensorrt on {self.place.gpu}"
        entries = (self._engines.features, self._engines.step)
        self._caches = [KernelCache(self._library, runtime_cache, e.sha256, self.place) for e in entries]
        started = time.perf_counter()
        self._device = Device()
        try:
            self._open(self._device.held, bundle)
        except BaseException:
            self._device.close()
            raise
        log.debug("opened words of %s in %.1f s", engine.path, time.perf_counter() - started)

    def read(self, image: RgbImage, capacity: int, run: Run) -> TensorRTReader:
        sizes = {FEATURES: self._features_size} | {
            name: capacity * size for name, size in self._token_sizes.items()
        }
        run.begin()
        with self._device.turn(run.deadline) as stream:
            try:
                memory = Memory(sizes)
            except ResourceError:
                raise ResourceError(
                    f"the GPU's memory is full: {capacity} tokens of keys and values need "
                    f"{sum(sizes.values()) / 1e6:.0f} MB; ask for fewer with max_tokens (--max-tokens), or "
                    "close other programs on it"
                ) from None
            context = self._device.held.contexts[_VISION]
            stream.wait()  # a pass that was given up may still read the old image
            stream.upload(IMAGE, image)
            self._point(context, {IMAGE: stream.addresses[IMAGE], FEATURES: memory.addresses[FEATURES]})
            self._execute(context, stream, run)
            self._caches[0].keep(1)
        return TensorRTReader(self, memory, capacity, run)

    def step(
        self, memory: Memory, length: int, tokens: Whole, positions: Whole, rows: Whole, run: Run
    ) -> Floats:
        """Logits (V,) after ``tokens`` (T,), a prompt with nothing before it or one token after ``length``
        others; their keys and values go behind those that ``memory`` holds."""
        run.begin()
        profile = _PROMPT if length == 0 else _WORD
        with self._device.turn(run.deadline) as stream:
            context, count = self._device.held.contexts[profile], len(tokens)
            stream.wait()  # a step that was given up may still read what is written now
            for name, array in ((TOKENS, tokens), (POSITIONS, positions), (ROWS, rows)):
                stream.upload(name, array)
            if profile == _PROMPT:
                stream.upload(MASK, causal_mask(count, 0))
            self._shape(context, count, length)
            self._point(context, self._addresses(memory, stream, length))
            self._execute(context, stream, run)
            logits = np.empty(self.vocabulary, np.float32)
            stream.download(LOGITS, logits)
            self._caches[1].keep(profile)
        return logits

    def free(self, memory: Memory) -> None:
        """Give ``memory`` back once nothing that runs reads it."""
        with contextlib.suppress(SetupError), self._device.turn() as stream:
            stream.wait()
        memory.close()

    def close(self) -> None:
        self._device.close()

    @property
    def max_prompt(self) -> int:
        """Tokens that are read at once; of a longer prompt the rest follows one by one."""
        return self._engines.max_prompt

    @property
    def text_row(self) -> int:
        """What stands in ``image_rows`` for a token of text."""
        return self._words.image_tokens

    def _open(self, held: Held, bundle: Bundle) -> None:
        library, words = self._library, self._words
        held.loader = library.module.Runtime(library.logger)
        for entry in (self._engines.features, self._engines.step):
            held.engines.append(deserialise(held.loader, library, self._engine, bundle, entry))
        features, step = held.engines
        check_words_contract(features, step, self._engine, bundle, words)
        keys = _keys(step)
        self._token_sizes = {name: 4 * step.get_tensor_shape(name)[-1] for name in keys}
        self.vocabulary = int(step.get_tensor_shape(LOGITS)[-1])
        self._features_size = byte_size(tuple(step.get_tensor_shape(FEATURES)), np.float32)
        spec, most = bundle.manifest.task.render, self._engines.max_prompt
        held.stream.allocate(
            {
                IMAGE: byte_size((spec.height, spec.width, 3), np.uint8),
                TOKENS: byte_size((most,), np.int64),
                POSITIONS: byte_size((most, 3), np.int64),
                ROWS: byte_size((most,), np.int64),
                MASK: byte_size((most, most), np.float32),
                NO_MASK: byte_size((words.context,), np.float32),
                LOGITS: byte_size((self.vocabulary,), np.float32),
            }
        )
        held.stream.upload(NO_MASK, np.zeros(words.context, np.float32))
        held.contexts = make_contexts(step, library, self._caches[1], self._engine, profiles=2)
        for profile, context in enumerate(held.contexts):
            if not context.set_optimization_profile_async(profile, held.stream.handle):
                raise no_memory(library, self._engine, "more")
        held.contexts += make_contexts(features, library, self._caches[0], self._engine)
        held.stream.wait()

    def _shape(self, context: IExecutionContext, count: int, length: int) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            TOKENS: (1, count),
            POSITIONS: (1, count, 3),
            ROWS: (count,),
            MASK: (count, length + count),
        }
        for name, size in self._token_sizes.items():
            shapes[f"{PAST}{name}"] = (1, length, size // 4)
        if not all(context.set_input_shape(name, shape) for name, shape in shapes.items()):
            raise self._failure(f"take {count} tokens after {length} others")

    def _addresses(self, memory: Memory, stream: Stream, length: int) -> dict[str, int]:
        found = {name: stream.addresses[name] for name in (TOKENS, POSITIONS, ROWS, LOGITS)}
        found[MASK] = stream.addresses[NO_MASK if length else MASK]
        found[FEATURES] = memory.addresses[FEATURES]
        for name, size in self._token_sizes.items():
            found[f"{PAST}{name}"] = memory.addresses[name]
            found[name] = memory.addresses[name] + length * size
        return found

    def _point(self, context: IExecutionContext, addresses: dict[str, int]) -> None:
        if not all(context.set_tensor_address(name, address) for name, address in addresses.items()):
            raise self._failure("take its memory")

    def _execute(self, context: IExecutionContext, stream: Stream, run: Run) -> None:
        if not context.execute_async_v3(stream.handle):
            raise self._failure("run")
        # What runs on the GPU cannot be stopped: who comes next waits for it.
        while not stream.wait_until(time.monotonic() + _SECONDS_BETWEEN_CHECKS):
            run.check()

    def _failure(self, what: str) -> SetupError:
        reason = self._library.reason()
        if is_memory(reason):
            return ResourceError(
                f"the GPU's memory is full, and the engine cannot {what}: {reason}; close other programs on "
                "it, or build the engine for less with --max-prompt"
            )
        return ProviderError(
            f"the words of engine {self._engine.path} could not {what}: {reason}; describe with --runtime "
            "onnx, and report it with the output of: wafervlm doctor"
        )


class TensorRTReader:
    """See ``wafervlm.words.steps.Reader``."""

    def __init__(self, steps: TensorRTSteps, memory: Memory, capacity: int, run: Run) -> None:
        self.length = 0
        self._steps, self._memory, self._capacity, self._run = steps, memory, capacity, run

    def step(self, tokens: Whole, positions: Whole, rows: Whole) -> Floats:
        if not 0 < len(tokens) <= self._capacity - self.length:
            raise UsageError(
                f"{len(tokens)} tokens after {self.length} others, where there is room for {self._capacity}"
            )
        at_once = 1 if self.length else min(self._steps.max_prompt, len(tokens))
        logits = self._part(tokens[:at_once], positions[:at_once], rows[:at_once])
        for index in range(at_once, len(tokens)):
            one = slice(index, index + 1)
            logits = self._part(tokens[one], positions[one], rows[one])
        return logits

    def word(self, token: int, position: int) -> Floats:
        rows = np.array([self._steps.text_row], np.int64)
        return self.step(np.array([token], np.int64), np.full((1, 3), position, np.int64), rows)

    def close(self) -> None:
        self._steps.free(self._memory)

    def _part(self, tokens: Whole, positions: Whole, rows: Whole) -> Floats:
        logits = self._steps.step(
            self._memory,
            self.length,
            np.ascontiguousarray(tokens),
            np.ascontiguousarray(positions),
            np.ascontiguousarray(rows),
            self._run,
        )
        self.length += len(tokens)
        return logits


def words_of(engine: Engine, bundle: Bundle) -> WordsEngines:
    """The words of ``engine``. Raises UsageError where it has none."""
    if engine.manifest.words is None:
        again = build_command(engine.path, bundle.path, words=True)
        raise UsageError(
            f"engine {engine.path} only classifies: it was built without words; build it with them: {again}, "
            "or describe with --runtime onnx"
        )
    return engine.manifest.words


def check_words_contract(
    features: ICudaEngine, step: ICudaEngine, engine: Engine, bundle: Bundle, words: Words
) -> None:
    """Refuse engines that do not take and give what the bundle's words ask for. Raises ManifestError."""
    spec, engines = bundle.manifest.task.render, words_of(engine, bundle)
    keys = _keys(step)
    inputs = {*INPUTS, *(f"{PAST}{name}" for name in keys)}
    good = (
        {IMAGE, FEATURES} == set(_names(features))
        and tuple(features.get_tensor_shape(IMAGE)) == (1, spec.height, spec.width, 3)
        and {LOGITS, *keys, *inputs} == set(_names(step))
        and tuple(features.get_tensor_shape(FEATURES)) == tuple(step.get_tensor_shape(FEATURES))
        and step.get_tensor_shape(FEATURES)[1] == words.image_tokens + 1
        and step.num_optimization_profiles == 2
        and step.get_tensor_profile_shape(TOKENS, _PROMPT)[-1][1] == engines.max_prompt
        and step.get_tensor_profile_shape(MASK, _WORD)[-1][1] == words.context
        and engines.context == words.context
    )
    if not good:
        raise ManifestError(
            f"the words of engine {engine.path} do not take and give what its bundle's ask for; build them "
            f"again: {build_command(engine.path, bundle.path, words=True)}"
        )


def _names(loaded: ICudaEngine) -> list[str]:
    return [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]


def _keys(step: ICudaEngine) -> list[str]:
    """The outputs that hold keys and values."""
    return [name.removeprefix(PAST) for name in _names(step) if name.startswith(PAST)]
