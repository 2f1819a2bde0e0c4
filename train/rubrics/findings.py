"""What the linter has to say about one row or one list of phrases."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ERRORS = {
    "no-image": "a row without an image",
    "malformed": "a row whose columns are not what the schema asks for",
    "unknown-dimension": "a dimension that the rule score does not have",
    "unknown-difficulty": "a difficulty that the curriculum does not have",
    "empty-dimension": "a dimension in which no row has a must-hit phrase",
    "empty-phrase": "a phrase without a word in it",
    "broken-phrase": "a phrase with unbalanced brackets or quotes, a loose end, or only a number",
    "comma-piece": "a phrase that is one piece of a text cut at its commas",
    "long-list": "more phrases in a list than anybody checked",
    "contradiction": "the same phrase both in must-hit and in must-avoid",
    "avoid-inside-hit": "a must-avoid phrase that stands inside a must-hit phrase",
    "reference-misses": "a reference answer that says none of its own must-hit phrases",
    "reference-offends": "a reference answer that says one of its own must-avoid phrases",
    "class-named": "a question that names the class it asks for",
}
WARNINGS = {
    "not-applicable": "a row without a must-hit phrase: left out and counted",
    "no-reference": "a row without a reference answer",
    "duplicate": "a phrase twice in one list",
    "duplicate-id": "an id that another row of the same file has",
    "comma-list": "phrases that follow each other with commas in one text of the rubric",
    "long-phrase": "a phrase so long that hardly any answer says it to the letter",
    "low-reference": "a reference answer that scores low, though it says some of its phrases",
    "class-word": "a question with an everyday word that is also the name of its class",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A defect: its ``kind`` (of ERRORS or WARNINGS), the ``row`` and the ``phrase`` it is about ("" where it
    is about the whole row), and one sentence that says ``why``."""

    kind: str
    row: str
    phrase: str
    why: str

    @property
    def is_error(self) -> bool:
        """Whether a set with it is refused."""
        return self.kind in ERRORS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "severity": "error" if self.is_error else "warning"}
