"""A language model behind any OpenAI-compatible endpoint: asked within a rate, replies kept on disk.

Every reply is written to the cache as soon as it is there, so that what was paid for is never asked again,
a refusal or a cut answer included.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wafervlm.errors import ConfigError, MissingDependencyError, ProviderError, UsageError

Finish = Literal["stop", "length", "refused"]
# Only read where the endpoint asks for a key; servers of one's own take any.
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class EndpointSettings:
    """Where to ask, and how: ``url`` up to and with /v1, the ``model``'s name there, ``per_minute`` requests
    at the most (0: no limit), ``retries`` of a request that failed, ``timeout`` seconds for one."""

    url: str
    model: str
    per_minute: float = 0.0
    retries: int = 3
    timeout: float = 60.0
    max_tokens: int = 512
    temperature: float = 0.7
    workers: int = 4

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"the endpoint {self.url!r} must be a URL such as http://localhost:8000/v1")
        if not self.model:
            raise UsageError("give the name of the endpoint's model as well: --model NAME")
        for name in ("per_minute", "retries", "temperature"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("timeout", "max_tokens", "workers"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model said, why it ended, and the tokens that the endpoint counted."""

    text: str
    finish: Finish
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


class NoReply(Exception):
    """The endpoint gave no answer; ``reason`` is a short phrase to count by. Never leaves the workshop."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class ReplyCache:
    """Replies by request, in a file of JSON lines that is appended to. Threads may share it.

    A last line that was cut by a crash is passed over. Raises ConfigError for a file of another kind.
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


class Endpoint:
    """Asks the endpoint of ``settings``, the ``cache`` first. Threads may share it.

    Raises MissingDependencyError where the openai client is not installed.
    """

    def __init__(self, settings: EndpointSettings, cache: ReplyCache) -> None:
        self._openai = _openai()
        self._settings, self._cache = settings, cache
        self._turn, self._next = threading.Lock(), 0.0
        self._client = self._openai.OpenAI(
            base_url=settings.url,
            api_key=os.environ.get(KEY_VARIABLE, "none"),
            max_retries=settings.retries,
            timeout=settings.timeout,
        )

    def key(self, messages: Sequence[dict[str, str]]) -> str:
        """The cache's key of a request: sha256 over all that decides the reply."""
        s = self._settings
        asked = [s.model, s.max_tokens, s.temperature, list(messages)]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply:
        """The reply to ``messages``. Raises NoReply where there is none after all retries, ProviderError
        where no request can succeed: a wrong key, path or model."""
        key = self.key(messages)
        if found := self._cache.get(key):
            return found
        self._wait()
        reply = self._reply(self._send(messages))
        self._cache.put(key, reply)
        return reply

    def _send(self, messages: Sequence[dict[str, str]]) -> Any:
        s, errors = self._settings, self._openai
        try:
            return self._client.chat.completions.create(
                model=s.model, messages=list(messages), max_tokens=s.max_tokens, temperature=s.temperature
            )
        except errors.APITimeoutError as error:
            raise NoReply("too slow", f"no answer within {s.timeout:g} s") from error
        except errors.APIConnectionError as error:
            raise NoReply("cannot be reached", str(error)) from error
        except (errors.AuthenticationError, errors.PermissionDeniedError, errors.NotFoundError) as error:
            raise ProviderError(
                f"the endpoint {s.url} refuses model {s.model!r}: {error}; check the URL, the model's name "
                f"and the key in ${KEY_VARIABLE}"
            ) from error
        except errors.APIStatusError as error:
            raise NoReply(f"status {error.status_code}", str(error)) from error
        # A body that is no JSON, or not of the form of a completion, comes out of the client as many things.
        except (errors.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise NoReply("nonsense", str(error)) from error

    def _reply(self, completion: Any) -> Reply:
        try:
            choice = completion.choices[0]
            text, finish = choice.message.content, choice.finish_reason
            refused = getattr(choice.message, "refusal", None) or finish == "content_filter"
            usage = completion.usage
        except (AttributeError, IndexError, TypeError) as error:
            raise NoReply("nonsense", f"no completion in {str(completion)[:80]!r}") from error
        if not refused and not isinstance(text, str):
            raise NoReply("nonsense", "a completion without text")
        return Reply(
            text=text if isinstance(text, str) else "",
            finish="refused" if refused else "length" if finish == "length" else "stop",
            prompt_tokens=int(getattr(usage, "prompt_tokens", 0) or 0),
            completion_tokens=int(getattr(usage, "completion_tokens", 0) or 0),
        )

    def _wait(self) -> None:
        """Sleep until the next request may start."""
        if not self._settings.per_minute:
            return
        with self._turn:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + 60 / self._settings.per_minute
        time.sleep(start - now)


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    lines = path.read_bytes().split(b"\n")
    known = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line) if line.strip() else None
            if entry is not None:
                known[str(entry["key"])] = asdict(Reply(**entry["reply"]))
                del known[entry["key"]]["cached"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise ConfigError(f"line {number} of {path} is no kept reply; give another file") from None
    return known


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise MissingDependencyError("asking an endpoint needs openai: pip install openai") from None
    return openai
