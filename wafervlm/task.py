"""Task: the question a model is asked, the answers it may give, and how the wafer is drawn.

A task's digest is the prompt-and-render lock: a model answers only the task it was made for.
A published VLM fell from 0.885 to 0.623 when its prompt differed from the one it was trained on.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from wafervlm.errors import TaskError
from wafervlm.render import RENDERER_VERSION, RenderSpec

Order = Literal["text-first", "image-first"]
Kind = Literal["single-label", "multi-label"]
Message = dict[str, Any]

MAX_FILE_BYTES = 1 << 20
# What a chat template would take for its own marks, or a reader of the recipe's files for the image.
_CHAT_MARKUP = re.compile(r"<\|.*?\|>|<image>|<video>")

# Of a multi-label task: what follows the question about a class; no class's name, and what joins several.
YES, NO = " yes", " no"
NONE, JOIN = "none", "+"

# After one of these the label follows without a space.
OPENERS = " \n\t([{\"'"

RECIPE_CONTEXT = (
    "This is a image of a wafer map, the yellow pattern in the circle refers to the defect pattern. "
)
RECIPE_QUESTION = "Please analyze this wafer map image and identify the defect type."


@dataclass(frozen=True, slots=True)
class Task:
    """A classification question over wafer maps.

    The model is asked ``prompt`` beside the image, in ``order``, and answers
    ``answer_prefix + " " + spelling + answer_suffix`` where the spelling is that of one label; the space
    is left out after an empty prefix, white space, an opening bracket or a quotation mark.
    ``labels`` are the names a Prediction carries; ``spellings`` says how the model writes one where
    that differs. ``system`` is the system message, none when None; ``name`` is for people and is not
    part of the digest.

    Of ``kind`` "single-label" one label is the answer. Of "multi-label" any number of classes may be shown:
    each is asked about by itself, as if no other were, by the beginning of an answer,
    ``answer_prefix + " " + spelling + answer_suffix``, which goes on with " yes" or " no". An answer is then
    named by its classes in the task's order, joined by "+", or "none". Raises TaskError.
    """

    labels: tuple[str, ...]
    name: str = "wafer-defects"
    prompt: str = RECIPE_CONTEXT + RECIPE_QUESTION
    order: Order = "text-first"
    system: str | None = None
    answer_prefix: str = "The wafer map image indicates the presence of"
    answer_suffix: str = " defect."
    spellings: Mapping[str, str] = field(default_factory=dict)
    render: RenderSpec = field(default_factory=RenderSpec)
    kind: Kind = "single-label"

    def __post_init__(self) -> None:
        _check_texts(self)
        object.__setattr__(self, "labels", _labels(self.labels, self.name))
        object.__setattr__(self, "spellings", _spellings(self.spellings, self.labels, self.name))
        _check_apart(self)
        if self.multi_label:
            _check_joinable(self)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Any]], Task], tuple[dict[str, Any]]]:
        # Read-only mappings cannot be pickled; and so a copy is checked again.
        return Task.from_dict, (self.to_dict(),)

    @property
    def digest(self) -> str:
        """sha256, 64 hex digits, of all that decides what the model sees and may answer."""
        locked = {**self.to_dict(), "renderer": RENDERER_VERSION}
        del locked["name"]
        text = json.dumps(locked, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def multi_label(self) -> bool:
        """Whether any number of classes may be the answer."""
        return self.kind == "multi-label"

    def spelling(self, label: str) -> str:
        """How the model writes ``label``."""
        return self.spellings.get(label, label)

    def answer(self, label: str, shown: bool = True) -> str:
        """The whole answer that names ``label``, without the token that ends the turn; of a multi-label task
        the answer about that class, whether or not it is ``shown``."""
        if label not in self.labels:
            raise TaskError(f"{label!r} is not a label of task {self.name!r}: {', '.join(self.labels)}")
        return self.stem(label) + ((YES if shown else NO) if self.multi_label else "")

    def stem(self, label: str) -> str:
        """The answer that names ``label``, of a multi-label task up to yes or no."""
        joined = not self.answer_prefix or self.answer_prefix[-1] in OPENERS
        return f"{self.answer_prefix}{'' if joined else ' '}{self.spelling(label)}{self.answer_suffix}"

    def messages(self, label: str | None = None, shown: bool = True) -> list[Message]:
        """The conversation for a chat template, with one ``{"type": "image"}`` entry; with ``label``,
        its answer follows as the assistant's turn."""
        text, image = {"type": "text", "text": self.prompt}, {"type": "image"}
        content = [image, text] if self.order == "image-first" else [text, image]
        messages: list[Message] = [{"role": "user", "content": content}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        if label is not None:
            text = {"type": "text", "text": self.answer(label, shown)}
            messages.append({"role": "assistant", "content": [text]})
        return messages

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them; ``from_dict`` reads them back."""
        palette = [list(colour) for colour in self.render.palette]
        # Tasks from before there was a choice do not say their kind, and their digests stand.
        said = [name for name in _names(Task) if name != "kind" or self.multi_label]
        return {
            **{name: getattr(self, name) for name in said},
            "labels": list(self.labels),
            "spellings": dict(self.spellings),
            "render": {"height": self.render.height, "width": self.render.width, "palette": palette},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Read what ``to_dict`` or a Task file says. Raises TaskError for an unknown or missing key,
        a wrong type and a task that cannot work."""
        values = _known(cls, values, "the task")
        if "labels" not in values:
            raise TaskError("the task has no labels; list them, as in labels = ['scratch', 'none']")
        render = RenderSpec(**_known(RenderSpec, values.pop("render", {}), "render of the task"))
        return cls(**values, render=render)

    @classmethod
    def from_file(cls, path: str | Path) -> Task:
        """Read a Task file: the fields of Task, and of RenderSpec under ``render``, as .json or .toml
        (Python 3.11). Raises TaskError, naming the file."""
        path = Path(path)
        values = _parsed(path, _read_text(path))
        try:
            return cls.from_dict(_known(cls, values, "the task"))
        except TaskError as error:
            raise TaskError(f"{path}: {error}") from None


def _check_texts(task: Task) -> None:
    texts = {"name": task.name, "prompt": task.prompt, "answer_prefix": task.answer_prefix}
    texts["answer_suffix"] = task.answer_suffix
    if task.system is not None:
        texts["system"] = task.system
    for key, text in texts.items():
        _check_text(text, f"{key} of the task")
    if not task.prompt.strip():
        raise TaskError(f"prompt of task {task.name!r} is empty; write the question that the model is asked")
    if task.order not in get_args(Order):
        raise TaskError(f"order {task.order!r} of task {task.name!r} must be {' or '.join(get_args(Order))}")
    if task.kind not in get_args(Kind):
        raise TaskError(f"kind {task.kind!r} of task {task.name!r} must be {' or '.join(get_args(Kind))}")
    if not isinstance(task.render, RenderSpec):
        raise TaskError(f"render of task {task.name!r} must be a RenderSpec, not {task.render!r}")


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise TaskError(f"{what} must be text, not {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TaskError(f"{what} holds half a character, which no tokenizer reads: {text!r}") from None
    markup = _CHAT_MARKUP.search(text)
    if markup:
        raise TaskError(
            f"{what} holds {markup[0]!r}; leave a chat template's marks out, they are added where they belong"
        )


def _labels(labels: object, name: str) -> tuple[str, ...]:
    if isinstance(labels, (str, bytes, Mapping)) or not isinstance(labels, Iterable):
        raise TaskError(f"labels of task {name!r} must be a list of texts, not {labels!r}")
    checked = tuple(labels)
    for label in checked:
        _check_name(label, f"label of task {name!r}")
    if len(checked) < 2:
        raise TaskError(f"task {name!r} has {len(checked)} labels and needs at least two")
    return checked


def _spellings(spellings: object, labels: tuple[str, ...], name: str) -> Mapping[str, str]:
    if not isinstance(spellings, Mapping):
        raise TaskError(f"spellings of task {name!r} must be a table of label to text, not {spellings!r}")
    for label, spelling in spellings.items():
        if label not in labels:
            known = ", ".join(labels)
            raise TaskError(f"task {name!r} spells {label!r}, which is not one of its labels: {known}")
        _check_name(spelling, f"spelling of {label!r} in task {name!r}")
    # Spelling a label as itself says nothing, so it must not change the digest.
    return MappingProxyType({label: text for label, text in spellings.items() if text != label})


def _check_name(text: object, what: str) -> None:
    _check_text(text, what)
    if not isinstance(text, str) or not text or text != text.strip() or not text.isprintable():
        raise TaskError(f"{what} is {text!r}; it must be one line of text without outer spaces")


def _check_apart(task: Task) -> None:
    for what, texts in (("labels", task.labels), ("spellings", tuple(task.spelling(x) for x in task.labels))):
        seen: dict[str, str] = {}
        for text in texts:
            # Loc and loc, or an accent written in two ways, are one label to whoever reads the answer.
            key = unicodedata.normalize("NFKC", text).casefold()
            if key in seen:
                both = f"{seen[key]!r} and {text!r}"
                raise TaskError(f"{what} {both} of task {task.name!r} cannot be told apart")
            seen[key] = text


def _check_joinable(task: Task) -> None:
    for label in task.labels:
        if label.casefold() == NONE:
            raise TaskError(
                f"multi-label task {task.name!r} has a class {label!r}; leave it out, it is the answer "
                "where no class is shown"
            )
        if JOIN in label:
            raise TaskError(
                f"label {label!r} of multi-label task {task.name!r} holds {JOIN!r}, which joins the names of "
                "several classes; rename it"
            )


def _names(cls: type[Task] | type[RenderSpec]) -> list[str]:
    return [f.name for f in fields(cls)]


def _known(cls: type[Task] | type[RenderSpec], values: object, what: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise TaskError(f"{what} must be a table of settings, not {values!r}")
    names = _names(cls)
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
            raise TaskError(f"unknown key {key!r} in {what}; {hint}")
    return dict(values)


def _read_text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES >> 20} MiB"
            raise TaskError(f"the task file {path} is larger than {limit}, which no task is")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the task file {path}: {error}") from None


def _parsed(path: Path, text: str) -> object:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".toml"):
        raise TaskError(f"the task file {path} must be named .json or .toml, after what it holds")
    try:
        return json.loads(text) if suffix == ".json" else _toml(path)(text)
    except TaskError:
        raise
    except (ValueError, RecursionError) as error:
        raise TaskError(f"the task file {path} is not valid {suffix[1:].upper()}: {error}") from None


def _toml(path: Path) -> Callable[[str], dict[str, Any]]:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads
    raise TaskError(f"the task file {path} needs Python 3.11 or newer for TOML; write it as .json")


RECIPE_LABELS = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch")
WAFER_DEFECTS = Task(
    labels=(*RECIPE_LABELS, "none"),
    spellings={label: label.lower() for label in RECIPE_LABELS},
)
