"""Description: what a model said of a wafer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from wafervlm.claims import Checked
    from wafervlm.wafermap import WaferMap

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, repr=False)
class Description:
    """The generated ``text`` and its ``tokens``, with the one that ended it.

    ``finish`` is ``stop`` where the model ended its answer, ``length`` at the maximum or the end of the
    context, ``cancelled`` where it was told to. ``prompt_tokens`` were read before the first word, image
    included. ``timing_ms`` holds the milliseconds of read, render, image (the vision tower), prompt, answer
    and total. ``locked`` is False for an image that is not a wafer map of the task. ``task`` and ``bundle``
    are the digests of the two, ``runtime`` what the text was generated on. What a model says is not measured:
    ``predict`` is what was judged.

    Where it was checked against the dies, ``claims`` are the claims of ``text``, supported or such that the
    dies cannot tell, ``struck`` those that the dies contradict and that were taken out of ``text``, and
    ``said`` is what was generated; where not, ``claims`` is None. ``wafer`` is what it is about.
    """

    text: str
    question: str
    tokens: tuple[int, ...]
    finish: Finish
    prompt_tokens: int
    timing_ms: Mapping[str, float] = field(default_factory=dict, compare=False)
    id: str = ""
    locked: bool = True
    task: str = ""
    bundle: str = ""
    runtime: str = ""
    said: str = ""
    claims: tuple[Checked, ...] | None = field(default=None, compare=False)
    struck: tuple[Checked, ...] = field(default=(), compare=False)
    wafer: WaferMap | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", tuple(self.tokens))
        object.__setattr__(self, "timing_ms", MappingProxyType(dict(self.timing_ms)))

    def __hash__(self) -> int:
        return hash((self.id, self.question, self.tokens, self.bundle))

    def __reduce__(self) -> tuple[Callable[..., Description], tuple[Any, ...]]:
        # Read-only mappings cannot be pickled.
        values = (getattr(self, item.name) for item in fields(self))
        return Description, tuple(dict(v) if isinstance(v, Mapping) else v for v in values)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        name = f" {self.id!r}" if self.id else ""
        outside = "" if self.locked else ", outside the lock"
        rate = f", {self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second else ""
        return f"<Description{name} {self.text!r}, {self.finish}{rate}{outside}>"

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answer over the whole time from the image to the last of them; 0 where not timed."""
        spent = sum(self.timing_ms.get(part, 0.0) for part in ("image", "prompt", "answer"))
        return 1e3 * len(self.tokens) / spent if spent else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "wafer"}
        plain = {"tokens": list(self.tokens), "timing_ms": dict(self.timing_ms)}
        claims = None if self.claims is None else [_plain(each) for each in self.claims]
        checked = {"claims": claims, "struck": [_plain(each) for each in self.struck]}
        return {**values, **plain, **checked, "tokens_per_second": self.tokens_per_second}

    def plot(self) -> Image.Image:
        """The wafer with the dies that bear out a claim marked, beside the text and its claims: an RGB
        picture. Raises UsageError where the text was not checked."""
        from wafervlm.words.picture import draw

        return draw(self)


def _plain(each: Checked) -> dict[str, Any]:
    claim = each.claim
    values = {"kind": claim.kind, "value": claim.value, "negated": claim.negated, "text": claim.text}
    dies = [] if each.dies is None else each.dies.tolist()
    return {**values, "verdict": each.verdict.value, "why": each.why, "dies": dies}
