"""Replies of a language model, kept on disk.

Every reply is written as soon as it is there, so that what was paid for is never asked again, a refusal or a
cut answer included.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wafervlm.errors import ConfigError, UsageError

Finish = Literal["stop", "length", "refused", "nonsense"]
FINISHES = get_args(Finish)
# How each line of kept replies begins.
_OPENING = b'{"key": "'
_REFUSES = re.compile(
    r"^\W*(?:i(?:'m| am) (?:sorry|unable)|sorry\b|i can(?:'t|not)\b|as an ai\b)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, why it ended, and the tokens that the endpoint counted."""

    text: str
    finish: Finish
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False

    @property
    def fault(self) -> str | None:
        """Why the text cannot be used, as a short phrase to count by; None where it can."""
        if self.finish != "stop":
            return "cut off" if self.finish == "length" else self.finish
        return None if self.text.strip() else "empty"

    @property
    def refuses(self) -> bool:
        """Whether the text says that it will not answer."""
        return _REFUSES.match(self.text) is not None


@dataclass
class Paid:
    """What replies cost in this run: those that were kept already cost nothing and are ``from_cache``."""

    from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def count(self, reply: Reply) -> None:
        """Take in ``reply``."""
        self.from_cache += reply.cached
        self.prompt_tokens += 0 if reply.cached else reply.prompt_tokens
        self.completion_tokens += 0 if reply.cached else reply.completion_tokens

    def cost(self, prices: tuple[float, float] | None) -> float | None:
        """What the tokens cost at ``prices`` per million prompt and completion tokens."""
        if prices is None:
            return None
        return (self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]) / 1e6


def check_prices(prices: tuple[float, float] | None) -> None:
    """Raise UsageError for prices that are none."""
    if prices is not None and not all(0 <= price < math.inf for price in prices):
        raise UsageError(f"the prices {prices[0]:g} and {prices[1]:g} of tokens must be numbers, 0 or more")


class ReplyCache:
    """Replies by request, in a file of JSON lines that is appended to. Threads may share it.

    A last line that was cut by a crash is removed. Raises ConfigError for a file of another kind.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = Path(path), threading.Lock()
        self._known = _read_cache(self._path)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Reply | None:
        """The reply to the request ``key``, None where there is none."""
        found = self._known.get(key)
        return None if found is None else Reply(**found, cached=True)

    def put(self, key: str, reply: Reply) -> None:
        """Keep ``reply``, on the disk before it returns."""
        values = asdict(reply)
        del values["cached"]
        with self._lock:
            self._known[key] = values
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "reply": values}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    lines = path.read_bytes().split(b"\n")
    # A power cut may leave zeros instead of text.
    cut = _OPENING.startswith(lines[-1].rstrip(b"\0")[: len(_OPENING)])
    known: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None and not (cut and number == len(lines)):
            raise ConfigError(f"line {number} of {path} is no kept reply; give another file")
        known.update(entry or {})
    if lines[-1]:
        _end_line(path, lines[-1])
    return known


def _entry(line: bytes) -> dict[str, dict[str, Any]] | None:
    """The reply of a line by its key, nothing where the line is blank; None where it is no kept reply."""
    if not line.strip():
        return {}
    try:
        found = json.loads(line)
        reply = asdict(Reply(**found["reply"]))
        del reply["cached"]
        if not (isinstance(reply["text"], str) and reply["finish"] in FINISHES):
            return None
        if not all(isinstance(reply[name], int) for name in ("prompt_tokens", "completion_tokens")):
            return None
        return {str(found["key"]): reply}
    except (ValueError, KeyError, TypeError):
        return None


def _end_line(path: Path, last: bytes) -> None:
    """End the ``last`` line of ``path``, or remove it where it was cut: the next must not go on in it."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if _entry(last) is None:
            file.truncate(end - len(last))
        else:
            file.write(b"\n")
