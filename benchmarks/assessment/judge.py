"""A language model that scores descriptions against the measured facts, from 0 to 10 in each dimension.

All subjects' answers about one wafer stand in one request, in an order drawn anew for each reading. What
cannot be taken as a score is left out under a name and counted, answer by answer; every reply is kept on the
disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from train.progress import Progress
from train.vqa.endpoint import CircuitBreaker, Endpoint, Unanswered
from train.vqa.replies import Paid, Reply
from train.vqa.rows import DIMENSIONS

PROMPTS = tuple(sorted(Path(__file__).with_name("prompts").glob("judge_*.txt")))
TOP = 10
_JSON = re.compile(r"\{.*\}", re.DOTALL)

# Scores of one reading of an answer by dimension, 0..1.
Reading = dict[str, float]


@dataclass(frozen=True, slots=True)
class Request:
    """One reading of the answers about the wafer at ``place``: the ``order`` of the subjects is that of their
    letters."""

    prompt: Path
    place: int
    repeat: int
    order: tuple[str, ...]
    messages: tuple[dict[str, str], ...]


@dataclass
class Judgements(Paid):
    """The readings by prompt, subject and place; what was left out, by reason; first letters' scores; how
    many requests are ``missing`` a reply that they may have later; what was paid for in this run."""

    readings: dict[tuple[str, str, int], list[Reading]] = field(default_factory=dict)
    kept: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    by_letter: dict[str, list[float]] = field(default_factory=dict)
    requests: int = 0
    missing: int = 0


def prompt_name(path: Path) -> str:
    """The name of a prompt's version."""
    return path.stem


def prompt_digest(path: Path) -> str:
    """sha256, 64 hex digits, of a prompt's text."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def requests(
    descriptions: Mapping[str, Sequence[str]],
    references: Sequence[str],
    places: Sequence[int],
    repeats: int,
    seed: int,
) -> list[Request]:
    """What is asked: each of ``places`` with each prompt ``repeats`` times, ``descriptions`` by subject."""
    made, names = [], list(descriptions)
    for version, prompt in enumerate(PROMPTS):
        instructions = prompt.read_text(encoding="utf-8").strip()
        for place in places:
            for repeat in range(repeats):
                rng = np.random.default_rng([seed, 13, version, place, repeat])
                order = tuple(names[at] for at in rng.permutation(len(names)))
                said = [descriptions[name][place].strip() or "(no answer)" for name in order]
                user = _user(references[place], said, repeat)
                turns = ({"role": "system", "content": instructions}, {"role": "user", "content": user})
                made.append(Request(prompt, place, repeat, order, turns))
    return made


def read_judgements(endpoint: Endpoint, asked: Sequence[Request], workers: int) -> Judgements:
    """Ask for all readings. An endpoint that is down is no error: the rest is counted as missing. Raises
    ProviderError where no request can succeed."""
    found, breaker = Judgements(), CircuitBreaker(endpoint)
    with Progress("judge", len(asked)) as progress, ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(breaker.ask, one.messages) for one in asked]
        try:
            for one, future in zip(asked, waiting, strict=True):
                _take(found, one, future.result())
                progress.advance(note=f"{found.kept} scores, {found.excluded.total()} left out")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def scores_in(reply: Reply, order: Sequence[str]) -> dict[str, Reading | str]:
    """What a reply gives each subject of ``order``: a reading, or why there is none."""
    whole = reply.fault
    values: Any = None
    if whole is None:
        try:
            values = json.loads(_JSON.search(reply.text).group())  # type: ignore[union-attr]
        except (AttributeError, ValueError, RecursionError):
            whole = "refused" if reply.refuses else "nonsense"
        else:
            whole = None if isinstance(values, dict) else "nonsense"
    if whole is not None:
        return dict.fromkeys(order, whole)
    return {name: _reading(values.get(letter)) for letter, name in zip(_letters(order), order, strict=True)}


def _take(found: Judgements, one: Request, reply: Reply | Unanswered) -> None:
    found.requests += 1
    if isinstance(reply, Unanswered):
        found.missing += reply.later
        found.excluded[reply.reason] += len(one.order)
        return
    found.count(reply)
    scores = scores_in(reply, one.order)
    for letter, name in zip(_letters(one.order), one.order, strict=True):
        reading = scores[name]
        if isinstance(reading, str):
            found.excluded[reading] += 1
            continue
        found.kept += 1
        found.by_letter.setdefault(letter, []).append(sum(reading.values()) / len(reading))
        found.readings.setdefault((prompt_name(one.prompt), name, one.place), []).append(reading)


def _user(reference: str, said: Sequence[str], repeat: int) -> str:
    answers = "\n\n".join(
        f"Answer {letter}:\n{text}" for letter, text in zip(_letters(said), said, strict=True)
    )
    # The number makes a second reading another request, to the cache here and at the endpoint.
    return f"Reading {repeat + 1}.\n\nMeasured facts:\n{reference}\n\n{answers}"


def _letters(items: Sequence[Any]) -> str:
    return string.ascii_uppercase[: len(items)]


def _reading(values: Any) -> Reading | str:
    if not isinstance(values, dict) or not all(name in values for name in DIMENSIONS):
        return "lacks a score"
    numbers = [values[name] for name in DIMENSIONS]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        return "a score that is no number"
    # NaN is within no range; an integer may be too large for a float.
    if not all(0 <= one <= TOP for one in numbers):
        return "a score out of range"
    return {name: one / TOP for name, one in zip(DIMENSIONS, numbers, strict=True)}
