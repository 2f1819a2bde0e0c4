"""Rewriting of answers by a language model: other words for the same facts, checked against the dies.

A rewriting is kept only where it says of the dies what the reference says, names the same candidates, keeps
its form and names the same class, or none; otherwise the text as it was stays, and the reason is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from train.progress import Progress
from train.vqa.answers import pattern_type
from train.vqa.causes import Causes
from train.vqa.descriptions import MORPHOLOGY, ROOT_CAUSE, SPATIAL
from train.vqa.endpoint import CircuitBreaker, Endpoint, Unanswered
from train.vqa.replies import Paid, Reply
from wafervlm.claims import check, extract
from wafervlm.geometry import ZONES, Geometry

INSTRUCTIONS = (
    "You edit short texts about semiconductor wafer maps. Say the same in other plain English words. Keep "
    "every number, zone, clock position, shape, pattern type and candidate phrase exactly; add nothing, "
    "leave nothing out. Keep numbered lines and the word 'candidate:' before each candidate. Never say what "
    "the cause is. Reply with the new text alone."
)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_DEFINITE = re.compile(
    r"\b(?:caused by|due to|because of|results? from|the (?:root[- ])?cause (?:is|was))\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A text to rewrite: the answer ``text`` to ``question`` about a wafer of ``label``, whose dies are
    ``measured`` by the function when they are needed; ``name`` is the row's id."""

    name: str
    question: str
    text: str
    label: str
    measured: Callable[[], Geometry]


@dataclass
class Report(Paid):
    """What became of the drafts: how many were kept, why others were dropped, how many of these are
    ``missing`` a reply that they may have later, what it cost."""

    asked: int = 0
    kept: int = 0
    missing: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON. Tokens are those paid for in this run; cached replies cost none."""
        return {
            "asked": self.asked,
            "kept": self.kept,
            "missing": self.missing,
            "from_cache": self.from_cache,
            "dropped": dict(self.dropped.most_common()),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


def messages(draft: Draft) -> list[dict[str, str]]:
    """The conversation that asks for a rewriting."""
    asked = f"Question: {draft.question}\nText:\n{draft.text}"
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": asked}]


def checkable(draft: Draft, causes: Causes) -> bool:
    """Whether the text says anything that a rewriting could be held to: a claim, a class, a candidate."""
    phrases = {*_candidates(causes), *_fields(causes), *_classes(causes)}
    return bool(extract(draft.text) or _named(phrases, draft.text))


def fault(draft: Draft, text: str, causes: Causes) -> str | None:
    """Why ``text`` may not stand for the draft's, as a short phrase; None where it may."""
    if _CONTROL.search(text):
        return "holds control characters"
    if _form(text) != _form(draft.text):
        return "lost its form"
    if len(text) > 3 * len(draft.text) + 80:
        return "too long"
    return _cause_fault(draft, text, causes) or _class_fault(draft, text, causes) or _claim_fault(draft, text)


def rewrite(
    drafts: Sequence[Draft], endpoint: Endpoint, causes: Causes, *, workers: int
) -> tuple[dict[str, str], Report]:
    """Ask ``endpoint`` for a rewriting of each draft that is ``checkable``; return the texts that may stand,
    by name, and what became of all. An endpoint that gives no reply is no error: the rest is counted as
    missing.

    Raises ProviderError where no request can succeed.
    """
    drafts = [draft for draft in drafts if checkable(draft, causes)]
    texts: dict[str, str] = {}
    report, breaker = Report(), CircuitBreaker(endpoint)
    with Progress("rewrite", len(drafts)) as progress, ThreadPoolExecutor(workers) as pool:
        for draft, reply in _replies(drafts, breaker, pool, workers):
            text, reason = _judged(draft, reply, causes)
            _count(report, reply, reason)
            if text is not None:
                texts[draft.name] = text
            tokens = report.prompt_tokens + report.completion_tokens
            progress.advance(
                note=f"{report.kept} kept, {sum(report.dropped.values())} dropped, {tokens} tokens"
            )
    return texts, report


def _replies(
    drafts: Sequence[Draft], breaker: CircuitBreaker, pool: ThreadPoolExecutor, workers: int
) -> Iterable[tuple[Draft, Reply | Unanswered]]:
    """Each draft with its reply, or the reason why there is none, as they come."""
    waiting = iter(drafts)
    running: dict[Future[Reply | Unanswered], Draft] = {}
    try:
        while True:
            # Few are in flight, so that an endpoint that is down is not asked thousands of times.
            while len(running) < 2 * workers and (draft := next(waiting, None)) is not None:
                running[pool.submit(breaker.ask, messages(draft))] = draft
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()
    finally:
        for left in running:
            left.cancel()


def _judged(draft: Draft, reply: Reply | Unanswered, causes: Causes) -> tuple[str | None, str | None]:
    if isinstance(reply, Unanswered):
        return None, reply.reason
    if not reply.fault and reply.refuses:
        return None, "refused"
    text = "\n".join(line.strip() for line in reply.text.strip().splitlines() if line.strip())
    reason = reply.fault or fault(draft, text, causes)
    return (text, None) if reason is None else (None, reason)


def _count(report: Report, reply: Reply | Unanswered, reason: str | None) -> None:
    report.asked += 1
    if isinstance(reply, Unanswered):
        report.missing += reply.later
    else:
        report.count(reply)
    if reason is None:
        report.kept += 1
    else:
        report.dropped[reason] += 1


def _form(text: str) -> tuple[str, ...]:
    """The parts that a text is made of: numbers of lines, titles of a description, JSON, a yes or no."""
    numbers = re.findall(r"^\s*(\d)\. ", text, re.MULTILINE)
    titles = [title for title in (SPATIAL, MORPHOLOGY, ROOT_CAUSE) if title.casefold() in text.casefold()]
    verdict = re.match(r"(yes|no)\b", text, re.IGNORECASE)
    return (*numbers, *titles, *("JSON" for _ in range(text.lstrip().startswith("{"))), *_low(verdict))


def _low(found: re.Match[str] | None) -> tuple[str, ...]:
    return () if found is None else (found.group().casefold(),)


def _cause_fault(draft: Draft, text: str, causes: Causes) -> str | None:
    before, after = (_named(_candidates(causes), one) for one in (draft.text, text))
    if after - before:
        return "names another candidate"
    if before - after or _named(_fields(causes), draft.text) - _named(_fields(causes), text):
        return "leaves out a candidate"
    if text.casefold().count("candidate") < len(before) or _DEFINITE.search(text):
        return "names a cause as a fact"
    return None


def _candidates(causes: Causes) -> set[str]:
    return {c.phrase for pattern in causes.patterns.values() for c in pattern.candidates}


def _fields(causes: Causes) -> set[str]:
    """Process steps and kinds of equipment."""
    candidates = [c for pattern in causes.patterns.values() for c in pattern.candidates]
    return {name for c in candidates for name in (c.step, c.category)}


def _class_fault(draft: Draft, text: str, causes: Causes) -> str | None:
    before, after = (_named(_classes(causes), one) for one in (draft.text, text))
    if after - before:
        return "names another class"
    return "leaves out the class" if before - after else None


def _classes(causes: Causes) -> list[str]:
    # Named with its field where the name alone is a zone as well.
    names = [label for label in causes.patterns if label.casefold() not in ZONES]
    return [*names, *map(pattern_type, causes.patterns)]


def _named(phrases: Iterable[str], text: str) -> set[str]:
    return {p for p in phrases if re.search(rf"(?<![\w-]){re.escape(p)}(?![\w-])", text, re.IGNORECASE)}


def _claim_fault(draft: Draft, text: str) -> str | None:
    reference, said = set(extract(draft.text)), extract(text)
    if any(found.contradicted for found in check(said, draft.measured())):
        return "contradicts the dies"
    if set(said) - reference:
        return "says what the reference does not"
    return "leaves out a claim" if reference - set(said) else None
