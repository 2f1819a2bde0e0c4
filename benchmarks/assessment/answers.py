"""Answers, kept on disk by who was asked what about which dies: a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.assessment.speaker import Answering, Asked
from train.progress import Progress
from train.vqa.replies import Reply, ReplyCache


def answer_all(
    name: str, digest: str, ready: Answering, asked: Sequence[Asked], cache: ReplyCache, max_tokens: int
) -> list[Reply]:
    """The answers of the subject ``name`` to ``asked``, in order; those that ``cache`` has are not generated
    again."""
    keys = [_key(f"{digest} {ready.task}", ready.numbers, one, max_tokens) for one in asked]
    found = [cache.get(key) for key in keys]
    missing = [place for place, reply in enumerate(found) if reply is None]
    with Progress(f"ask {name}", len(asked), done=len(asked) - len(missing)) as progress:
        for at, reply in ready.answers([asked[place] for place in missing], max_tokens):
            cache.put(keys[missing[at]], reply)
            found[missing[at]] = reply
            progress.advance()
    return [reply for reply in found if reply is not None]


def answer_figures(replies: Sequence[Reply]) -> dict[str, Any]:
    """How long the answers are, and how many are cut or empty."""
    return {
        "answers": len(replies),
        "cut": sum(reply.finish == "length" for reply in replies),
        "empty": sum(not reply.text.strip() for reply in replies),
        "tokens_per_answer": sum(reply.completion_tokens for reply in replies) / max(len(replies), 1),
    }


def _key(subject: str, numbers: str, one: Asked, max_tokens: int) -> str:
    # The digest of a wafer is of its dies alone, and an image is drawn of these and the task.
    asked = [subject, numbers, one.wafer.digest, one.question, one.system, max_tokens]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
