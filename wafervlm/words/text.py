"""Text to tokens and back: the conversation that the model is shown, and the pieces that come out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafervlm.bundle import Bundle
from wafervlm.errors import ManifestError, MissingDependencyError, UsageError, import_fault
from wafervlm.words.section import Words

# What a decoder writes for bytes that are no whole character.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """N tokens: their ids, ``positions`` (N, 3) int64, temporal, height and width, and ``rows`` (N,) int64,
    which of the image tokens each is, or the number of image tokens for text."""

    ids: tuple[int, ...]
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def next_position(self) -> int:
        """The position of the first token of the answer."""
        return int(self.positions.max()) + 1


class Language:
    """The tokenizer of a bundle, and its chat template filled in."""

    def __init__(self, bundle: Bundle, words: Words) -> None:
        self._words, self._text_first = words, bundle.manifest.task.order == "text-first"
        self._where = bundle.path / words.tokenizer
        self._tokenizer = _tokenizer(bundle.read(words.tokenizer).decode("utf-8", "replace"), self._where)
        self._image: str | None = self._tokenizer.id_to_token(words.image_token)
        special = self._tokenizer.get_added_tokens_decoder().values()
        self._marks = sorted(token.content for token in special if token.special)
        if self._image not in self._marks:
            raise ManifestError(
                f"{self._where} has no mark for the image under the id {words.image_token}; "
                "export the bundle again"
            )

    def prompt(self, question: str, answer: str = "") -> Prompt:
        """The tokens of the conversation that asks ``question``, up to where the answer begins, or to the
        end of the beginning of an ``answer``. Raises UsageError."""
        words, asked = self._words, self._checked(question)
        first, second = (asked, self._image) if self._text_first else (self._image, asked)
        text = f"{words.opening}{first}{words.middle}{second}{words.closing}{answer}"
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if ids.count(words.image_token) != 1:
            raise ManifestError(f"{self._where} does not read the bundle's template; export the bundle again")
        return lay_out(ids, words)

    def decode(self, ids: list[int]) -> str:
        """The text of ``ids``; marks of the template, such as the end of the turn, are left out."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _checked(self, question: object) -> str:
        if not isinstance(question, str) or not question.strip():
            raise UsageError(f"the question is {question!r}; it must be text")
        try:
            question.encode()
        except UnicodeEncodeError:
            raise UsageError("the question holds half a character, which no tokenizer reads") from None
        found = next((mark for mark in self._marks if mark in question), None)
        if found is not None:
            raise UsageError(f"the question holds {found!r}, a mark of the chat template; leave it out")
        return question.strip()


def lay_out(ids: Sequence[int], words: Words) -> Prompt:
    """The prompt of ``ids``, in which one token stands for the image.

    The image's tokens have the temporal position of the first of them, and their row and column beyond it;
    text goes on after the larger of the two (P. Wang et al., "Qwen2-VL", 2024).
    """
    (rows, columns), count = words.grid, words.image_tokens
    place = list(ids).index(words.image_token)
    after = len(ids) - place - 1
    image = np.stack(np.broadcast_arrays(0, *np.ogrid[:rows, :columns]), axis=-1).reshape(count, 3)
    before, behind = (np.repeat(np.arange(n)[:, None], 3, axis=1) for n in (place, after))
    positions = np.concatenate([before, place + image, place + max(rows, columns) + behind])
    image_rows = np.concatenate([np.full(place, count), np.arange(count), np.full(after, count)])
    return Prompt(
        ids=(*ids[:place], *[words.image_token] * count, *ids[place + 1 :]),
        positions=positions.astype(np.int64),
        rows=image_rows.astype(np.int64),
    )


class Pieces:
    """Turns tokens into text as they come. A piece is held back while it ends in half a character, so the
    pieces, put together, are the text of all tokens."""

    def __init__(self, language: Language) -> None:
        self._language = language
        self._ids: list[int] = []
        self._start, self._read = 0, 0

    def add(self, token: int) -> str:
        """What can be said for certain after one more ``token``; often a word, sometimes nothing."""
        self._ids.append(token)
        piece = self._pending()
        if not piece or piece.endswith(UNFINISHED):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return piece

    def rest(self) -> str:
        """What is left when no token follows."""
        piece, self._read = self._pending(), len(self._ids)
        return piece

    def _pending(self) -> str:
        # Some decoders write the first token of a text otherwise than the same token later on.
        known = self._language.decode(self._ids[self._start : self._read])
        return self._language.decode(self._ids[self._start :])[len(known) :]


def _tokenizer(text: str, where: object) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            f"to put words into tokens, tokenizers is needed, which {import_fault('tokenizers', error)}; "
            "install it with: pip install 'wafervlm[words]'"
        ) from None
    try:
        return Tokenizer.from_str(text)
    except Exception as error:
        raise ManifestError(
            f"{where} cannot be read by this version of tokenizers: {error}; upgrade tokenizers, or export "
            "the bundle again"
        ) from None
