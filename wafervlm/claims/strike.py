"""Taking claims out of a text, so that what is left is still English."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from wafervlm.claims.claim import Claim
from wafervlm.claims.clauses import SENTENCE_END
from wafervlm.claims.extract import extract
from wafervlm.claims.vocabulary import normalized

_TWO_KEYS = re.compile(r"(?P<key>\b[A-Z][\w-]*(?: [\w-]+){0,2}: +)[A-Z][\w-]*(?: [\w-]+){0,2}:")
NOTHING = "cannot be told."
_HEADER = re.compile(r"[\s#>*-]*(?:\d\s*[.)]\s*)?[\s*]*(?:[A-Z][\w-]*(?: [\w-]+){0,2}:\**[ \t]+)?")
_BETWEEN = re.compile(
    r"\s*:\s+|\s*[,;]\s*(?:and|but|while|whereas|though|although|or)\s+|\s*[;,]\s+|\s+(?:but|while"
    r"|whereas)\s+"
    r"|\s+and\s+(?=(?:a|an|the|it|they|there|is|are|has|have|lies?|failing|few|some|many|most|no|about)\b)"
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|lies?|sits?|stands?|fails?|failed|forms?|runs?|covers?|reach(?:es)?"
    r"|rises?|falls?|"
    r"extends?|spans?|occurs?|appears?|shows?|looks?|holds?|contains?|counts?|makes?|goes|repeats?"
    r"|recurs?|does|do|"
    r"can|stays?|remains?|follows?|crosses|stretch(?:es)?|occup(?:y|ies)|touch(?:es)?|points?"
    r"|concentrates?)\b"
)
_STARTS_WITH_VERB = re.compile(rf"(?:not |also |mostly )*(?:{_VERB.pattern})")
_PREPOSITION = re.compile(
    r"(?:at|in|on|near|along|around|toward|towards|from|between|over|for|with|of|within|across|by"
    r"|close to|next to)\b"
)
# After these a sentence needs more: "the cluster lies" is none.
_UNFINISHED = re.compile(
    r"\b(?:is|are|was|were|lies?|sits?|stands?|located|positioned|situated|cent(?:er|re)d|found"
    r"|concentrated|mostly|"
    r"mainly|largely|primarily|runs?|reach(?:es)?|extends?|stretch(?:es)?|appears?|occurs?|spans?|has"
    r"|have|and|or|to|"
    r"a|an|the|about|roughly|just|only|not|but|one|another|particularly|especially|notably|well)$"
)
_ADJUNCTS = ("zone", "clock", "span", "quadrant", "side", "extent", "size")
_VOWEL = re.compile(r"[aeiou]")


def strike(text: str, claims: Iterable[Claim]) -> str:
    """``text`` without ``claims``, which ``extract`` found in it.

    Of each sentence as little is taken as leaves it grammatical and its other claims as they are: a phrase, a
    clause, or all of it. A part of which nothing is left says that it cannot be told.
    """
    struck = sorted(claims, key=lambda claim: claim.start)
    if not struck:
        return text
    out = []
    for start, end in _sentences(text):
        inside = [c for c in struck if start <= c.start < end]
        out.append(
            _without(text[start:end], [_moved(c, -start) for c in inside]) if inside else text[start:end]
        )
    return _tidy("".join(out), text)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for m in SENTENCE_END.finditer(normalized(text)):
        yield start, m.end()
        start = m.end()
    yield start, len(text)


def _moved(claim: Claim, by: int) -> Claim:
    return Claim(claim.kind, claim.value, claim.text, claim.start + by, claim.end + by, claim.negated)


def _without(sentence: str, struck: Sequence[Claim]) -> str:
    header = _HEADER.match(sentence)
    begin = header.end() if header and header.end() <= struck[0].start else 0
    head, body = sentence[:begin], sentence[begin:]
    struck = [_moved(c, -begin) for c in struck]
    # Whole claims that start in the header ("Zone: edge") fall with all of it.
    wanted = Counter(extract(body)) - Counter(struck)
    for attempt, whole in ((_phrases(body, struck), True), (_clauses(body, struck), False)):
        if attempt is None or not re.search(r"\w", attempt):
            continue
        left = Counter(extract(attempt))
        if left == wanted or (not whole and left and left <= wanted):
            return head + _capital(attempt)
    return head.rstrip(" ") * bool(head.strip()) + "\n" * sentence.endswith("\n")


def _phrases(body: str, struck: Sequence[Claim]) -> str | None:
    """``body`` without the phrases alone, None where one of them carries its sentence."""
    for claim in sorted(struck, key=lambda c: -c.start):
        before, after = body[: claim.start], body[claim.end :]
        phrase = body[claim.start : claim.end].lower()
        if (
            claim.kind == "density"
            and re.match(r" [a-z]", after)
            and re.search(r"\b(?:an?|the|one) (?:\w+ )?$", before.lower())
        ):
            body = _with_article(before, after.lstrip())
            continue
        if claim.kind not in _ADJUNCTS or not _PREPOSITION.match(phrase):
            return None
        follows = after.lstrip(" ,")
        open_end = _UNFINISHED.search(before.rstrip(" ,").lower())
        if open_end and not _PREPOSITION.match(follows.lower()):
            return None
        if before.rstrip().endswith(",") and after.startswith(",") and _STARTS_WITH_VERB.match(follows):
            body = f"{before.rstrip(' ,')} {follows}"
            continue
        leads = open_end or not before.strip()
        body = before + follows if leads else before.rstrip(" ,") + after
    return body


def _with_article(before: str, after: str) -> str:
    article = re.search(r"\b([Aa])n? $", before)
    if not article:
        return before + after
    return before[: article.start()] + article[1] + ("n " if _VOWEL.match(after.lower()) else " ") + after


def _clauses(body: str, struck: Sequence[Claim]) -> str | None:
    """``body`` without the clauses of ``struck`` and what leans on them, None where no clause is left."""
    cuts = list(_BETWEEN.finditer(body))
    starts, ends = [0, *(m.end() for m in cuts)], [*(m.start() for m in cuts), len(body.rstrip(" .!?\n"))]
    kept: list[int] = []
    leaning = False
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        words = body[start:end].strip()
        stands = bool(_VERB.search(words)) and not _STARTS_WITH_VERB.match(words)
        hit = any(start <= c.start < max(end, start + 1) for c in struck)
        if hit:
            leaning = stands or leaning
        elif stands or not leaning:
            kept.append(i)
            leaning = leaning and not stands
    if not kept or not any(_VERB.search(body[starts[i] : ends[i]]) for i in kept):
        return None
    pieces = [body[starts[kept[0]] : ends[kept[0]]]]
    pieces += [cuts[i - 1].group() + body[starts[i] : ends[i]] for i in kept[1:]]
    return "".join(pieces).strip() + body[ends[-1] :]


def _capital(sentence: str) -> str:
    first = re.search(r"\S", sentence)
    if not first:
        return sentence
    at = first.start()
    return sentence[:at] + sentence[at].upper() + sentence[at + 1 :]


def _tidy(left: str, text: str) -> str:
    """No gaps, no empty lines that were not there, and no part without a word."""
    left = re.sub(r"[ \t]{2,}", " ", left)
    left = re.sub(r"[ \t]+(?=[.,;\n])", "", left)
    for m in _TWO_KEYS.finditer(left):
        if m.group() not in text:
            left = left.replace(m["key"], "", 1)
    headers = {line.strip() for line in text.splitlines()}
    lines = []
    for line in left.splitlines(keepends=True):
        bare, end = line.strip(), "\n" * line.endswith("\n")
        if bare in headers or not re.fullmatch(r"[-*>]|\d[.)]|.*:\**", bare):
            lines.append(line)
        elif bare.rstrip("*").endswith(":"):
            lines.append(f"{line.rstrip()} {NOTHING}{end}")
    return "".join(lines).strip(" ") if text[:1] != " " else "".join(lines)
