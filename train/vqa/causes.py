"""The table of candidate causes: which process steps are known to leave which pattern, and who says so.

The table is ``causes.toml`` beside this file, or a user's own of the same form.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wafervlm.errors import ConfigError

CAUSES = Path(__file__).with_name("causes.toml")
CATEGORIES = ("Lithography", "Etching", "Deposition", "CMP", "Wet Processing", "Handling", "Any")
STRENGTHS = ("published", "weak")
# A phrase of a rubric is matched whole, and candidates are listed with these between them.
_SEPARATORS = re.compile(r"[;:.\n]")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate cause: the ``phrase`` to write, its equipment ``category`` and process ``step``, and the
    name of the ``source`` that it comes from."""

    phrase: str
    category: str
    step: str
    source: str


@dataclass(frozen=True, slots=True)
class Pattern:
    """What the table says of one label. ``clock`` is False for a pattern without a clock position."""

    label: str
    clock: bool
    synonyms: tuple[str, ...]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Causes:
    """The table: patterns by label, and the works behind each source with its strength."""

    patterns: Mapping[str, Pattern]
    works: Mapping[str, tuple[str, ...]]
    strengths: Mapping[str, str]
    where: str = "the table of causes"

    def of(self, label: str) -> Pattern:
        """The pattern of ``label``. Raises ConfigError where the table does not have it."""
        try:
            return self.patterns[label]
        except KeyError:
            near = difflib.get_close_matches(label, self.patterns, n=1)
            hint = f", though it has [label.{near[0]}]" if near else ""
            raise ConfigError(
                f"{self.where} has no [label.{label}]{hint}; add one, with an empty candidate list where "
                "no cause is known"
            ) from None

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raise ConfigError for the first of ``labels`` that the table does not have."""
        for label in labels:
            self.of(label)

    @functools.cached_property
    def telling(self) -> re.Pattern[str]:
        """Matches any word that is a label of the table, a part of one, or a synonym."""
        words = {word for label in self.patterns for word in (label, *re.split(r"[-_\s]+", label))}
        words |= {word for pattern in self.patterns.values() for word in pattern.synonyms}
        longest = sorted((re.escape(word) for word in words), key=len, reverse=True)
        return re.compile(rf"(?<!\w)(?:{'|'.join(longest)})(?!\w)", re.IGNORECASE)


@functools.cache
def default_causes() -> Causes:
    """The table that comes with the workshop."""
    return read_causes(CAUSES)


def read_causes(path: Path) -> Causes:
    """Read the table at ``path``. Raises ConfigError where it is not TOML, a key is missing or unknown, or a
    candidate names a category or a source that is not there."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the table of causes {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the table of causes {path} is not valid TOML: {error}") from None
    _keys(table, {"source", "label"}, str(path))
    sources = {name: _source(entry, f"[source.{name}] of {path}") for name, entry in table["source"].items()}
    patterns = {name: _pattern(name, entry, sources, path) for name, entry in table["label"].items()}
    return Causes(
        patterns=patterns,
        works={name: works for name, (_, works) in sources.items()},
        strengths={name: strength for name, (strength, _) in sources.items()},
        where=str(path),
    )


def _source(entry: Any, where: str) -> tuple[str, tuple[str, ...]]:
    _keys(entry, {"strength", "works"}, where)
    if entry["strength"] not in STRENGTHS:
        raise ConfigError(
            f"strength of {where} is {entry['strength']!r}; it must be {' or '.join(STRENGTHS)}"
        )
    works = _texts(entry["works"], f"works of {where}")
    if not works:
        raise ConfigError(f"works of {where} is empty; name at least one work")
    return entry["strength"], works


def _pattern(label: str, entry: Any, sources: Mapping[str, Any], path: Path) -> Pattern:
    where = f"[label.{label}] of {path}"
    _keys(entry, {"clock", "synonyms", "candidate"}, where)
    if not isinstance(entry["clock"], bool):
        raise ConfigError(f"clock of {where} is {entry['clock']!r}; it must be true or false")
    if not isinstance(entry["candidate"], list):
        raise ConfigError(f"candidate of {where} must be a list of tables")
    candidates = tuple(_candidate(item, sources, where) for item in entry["candidate"])
    phrases = [candidate.phrase.casefold() for candidate in candidates]
    if len(set(phrases)) < len(phrases):
        raise ConfigError(f"{where} names a candidate twice")
    return Pattern(label, entry["clock"], _texts(entry["synonyms"], f"synonyms of {where}"), candidates)


def _candidate(item: Any, sources: Mapping[str, Any], where: str) -> Candidate:
    _keys(item, {"phrase", "category", "step", "source"}, f"a candidate in {where}")
    values = {name: item[name] for name in ("phrase", "category", "step", "source")}
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{name} of a candidate in {where} is {value!r}; it must be text")
    phrase = values["phrase"]
    if _SEPARATORS.search(phrase) or "cause" in phrase.casefold():
        raise ConfigError(
            f"candidate {phrase!r} in {where} must be one short phrase without . : ; and the word cause"
        )
    if values["category"] not in CATEGORIES:
        raise ConfigError(
            f"category of candidate {phrase!r} in {where} is {values['category']!r}; known are "
            f"{', '.join(CATEGORIES)}"
        )
    if values["source"] not in sources:
        raise ConfigError(
            f"candidate {phrase!r} in {where} cites the source {values['source']!r}, which has no "
            f"[source.{values['source']}]"
        )
    return Candidate(**values)


def _keys(entry: Any, wanted: set[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must be a table")
    missing, unknown = sorted(wanted - entry.keys()), sorted(entry.keys() - wanted)
    if missing:
        raise ConfigError(f"{where} has no {missing[0]}")
    if unknown:
        near = difflib.get_close_matches(unknown[0], wanted, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(wanted))}"
        raise ConfigError(f"{where} has an unknown key {unknown[0]!r}; {hint}")


def _texts(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise ConfigError(f"{where} must be a list of texts")
    return tuple(values)
