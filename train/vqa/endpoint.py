"""A language model behind any OpenAI-compatible endpoint: asked within a rate, replies kept on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from train.vqa.replies import Finish, Reply, ReplyCache
from wafervlm.errors import MissingDependencyError, ProviderError, UsageError

Fault = Literal["endpoint", "request", "reply"]
# After so many requests in a row without a reply the endpoint is taken for down.
GIVE_UP = 8
# An endpoint that is up says these of one request: it is too long, or its text is not let through.
_REQUEST_FAULTS = (400, 413, 422)
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
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("timeout", "max_tokens", "workers"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Why a request has no reply, as a short phrase to count by, and whether it may have one ``later``."""

    reason: str
    later: bool


class NoReply(Exception):
    """The endpoint gave no answer; ``reason`` is a short phrase to count by, ``fault`` what it lies in.
    Never leaves the workshop."""

    def __init__(self, reason: str, detail: str, fault: Fault = "endpoint") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.fault = reason, fault


class Endpoint:
    """Asks the endpoint of ``settings``, the ``cache`` first. Threads may share it.

    Raises MissingDependencyError where the openai client is not installed, UsageError for a key that cannot
    be one.
    """

    def __init__(self, settings: EndpointSettings, cache: ReplyCache) -> None:
        self._openai = _openai()
        self._settings, self._cache = settings, cache
        self._turn, self._next = threading.Lock(), 0.0
        self._client = self._openai.OpenAI(
            base_url=settings.url,
            api_key=_key(),
            max_retries=settings.retries,
            timeout=settings.timeout,
        )

    def key(self, messages: Sequence[dict[str, str]]) -> str:
        """The cache's key of a request: sha256 over all that decides the reply."""
        s = self._settings
        asked = [s.model, s.max_tokens, s.temperature, list(messages)]
        return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()

    def kept(self, messages: Sequence[dict[str, str]]) -> Reply | None:
        """The reply to ``messages`` that the cache has, None where it has none."""
        return self._cache.get(self.key(messages))

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
            fault: Fault = "request" if error.status_code in _REQUEST_FAULTS else "endpoint"
            raise NoReply(f"status {error.status_code}", str(error), fault) from error
        # A body that is no JSON, or not of the form of a completion, comes out of the client as many things.
        except (errors.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise NoReply("nonsense", str(error), "reply") from error

    def _reply(self, completion: Any) -> Reply:
        try:
            choice = completion.choices[0]
            text, finish = choice.message.content, choice.finish_reason
            refused = getattr(choice.message, "refusal", None) or finish == "content_filter"
            usage = completion.usage
        except (AttributeError, IndexError, TypeError) as error:
            raise NoReply("nonsense", f"no completion in {str(completion)[:80]!r}", "reply") from error
        ended: Finish = "refused" if refused else "length" if finish == "length" else "stop"
        # A completion without a text was paid for as well.
        return Reply(
            # Half a character can be neither kept nor written.
            text=text.encode("utf-8", "replace").decode() if isinstance(text, str) else "",
            finish="nonsense" if ended == "stop" and not isinstance(text, str) else ended,
            prompt_tokens=_tokens(usage, "prompt_tokens"),
            completion_tokens=_tokens(usage, "completion_tokens"),
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


class CircuitBreaker:
    """Asks ``endpoint`` until GIVE_UP requests in a row had no reply; from then on there are only those that
    are kept. Threads may share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._turn = endpoint, threading.Condition()
        self._failures = self._refused = self._pending = 0
        self._taken, self._last = False, ""

    def ask(self, messages: Sequence[dict[str, str]]) -> Reply | Unanswered:
        """The reply to ``messages``, or why there is none. Raises ProviderError as the endpoint does, and
        where it refused GIVE_UP requests and took none: it will take no other."""
        if (kept := self._endpoint.kept(messages)) is not None:
            # It took requests of this kind; whether it is up is another question.
            self._taken = True
            return kept
        if self._failures >= GIVE_UP:
            return Unanswered("not asked, the endpoint is down", later=True)
        self._begin()
        answer: Reply | NoReply | None = None
        try:
            answer = self._endpoint.ask(messages)
        except NoReply as error:
            answer = error
        finally:
            with self._turn:
                self._pending -= 1
                self._note(answer)
                self._turn.notify_all()
        with self._turn:
            self._require_taken()
        if isinstance(answer, NoReply):
            return Unanswered(answer.reason, later=answer.fault == "endpoint")
        return answer

    def _begin(self) -> None:
        """Wait for a turn. Raises ProviderError where the endpoint refuses all."""
        with self._turn:
            # One that is under way may yet be taken.
            while self._refuses and self._pending:
                self._turn.wait()
            self._require_taken()
            self._pending += 1

    def _require_taken(self) -> None:
        if self._refuses and not self._pending:
            raise ProviderError(
                f"the endpoint refused {self._refused} requests and took none, the last with {self._last}; "
                "check the model's name and what it allows"
            )

    @property
    def _refuses(self) -> bool:
        return self._refused >= GIVE_UP and not self._taken

    def _note(self, answer: Reply | NoReply | None) -> None:
        if answer is None:  # an error that ends it all
            return
        fault = answer.fault if isinstance(answer, NoReply) else None
        self._taken = self._taken or fault in (None, "reply")
        self._failures = 0 if fault in (None, "request") else self._failures + 1
        if fault == "request":
            self._refused, self._last = self._refused + 1, str(answer)


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE) or "none"
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"the key in ${KEY_VARIABLE} holds characters that no key has; set it again")
    return key


def _tokens(usage: Any, name: str) -> int:
    """A number of tokens, 0 where the endpoint gave none."""
    count = getattr(usage, name, 0)
    return count if isinstance(count, int) and count > 0 else 0


def require_replies(
    missing: int, asked: int, url: str, out: Path, kept: Path, reasons: Mapping[str, int]
) -> None:
    """Raise ProviderError where ``missing`` of the requests ``asked`` had no reply when ``out`` was written;
    those that came are in the file ``kept``. ``reasons`` counts why answers are missing or were left out."""
    if missing:
        why = ", ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
        paid = f"what was paid for is kept in {kept}, and " if kept.is_file() else ""
        raise ProviderError(
            f"{missing} of {asked} requests to {url} had no reply, most often: {why}; {out} was written "
            f"without them; {paid}the same command asks for the rest"
        )


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise MissingDependencyError("asking an endpoint needs openai: pip install openai") from None
    return openai
