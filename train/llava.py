"""LLaVA-style conversations about wafer maps: four questions for each image, each with a right answer.

golden: the task's own question and answer. yes and no: whether the map shows a class, once the true one and
once a wrong one. choice: which of the numbered classes it shows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wafervlm.answers import texts_of
from wafervlm.task import RECIPE_CONTEXT, Task

KINDS = ("golden", "yes", "no", "choice")
BINARY = "Does the wafer map image have the defect type of {label}?"
YES = "Yes, this wafer map image presents the defect type of {label}."
NO = "No, this wafer map image presents the defect type of {label}."
CHOICE = (
    "There are {count} possible types of defect of wafer map: {choices} Which type does this image present?"
)

Conversation = dict[str, Any]


def conversations(image: str, label: str, task: Task, chance: random.Random) -> list[Conversation]:
    """The four conversations, in the order of KINDS, about the image at path ``image``.

    ``chance`` picks the wrong class of the no-question. The image stands where the task's order has it.
    Of a multi-label task there is one about each class: the task's question, answered yes or no. Raises
    TaskError for a label that the task does not have.
    """
    stem = image.rsplit(".", 1)[0]
    if task.multi_label:
        said = zip(task.labels, texts_of(task, label), strict=True)
        return [conversation(f"{stem}-{name}", image, task, task.prompt, answer) for name, answer in said]
    answer = task.answer(label)
    context = RECIPE_CONTEXT if task.prompt.startswith(RECIPE_CONTEXT) else ""
    name = task.spelling(label)
    wrong = chance.choice([task.spelling(other) for other in task.labels if other != label])
    numbered = [f"({number}) {task.spelling(other)}." for number, other in enumerate(task.labels, start=1)]
    choice = CHOICE.format(count=len(numbered), choices=" ".join(numbered))
    pairs = {
        "golden": (task.prompt, answer),
        "yes": (context + BINARY.format(label=name), YES.format(label=name)),
        "no": (context + BINARY.format(label=wrong), NO.format(label=name)),
        "choice": (context + choice, numbered[task.labels.index(label)]),
    }
    return [conversation(f"{stem}-{kind}", image, task, *pairs[kind]) for kind in KINDS]


def conversation(name: str, image: str, task: Task, question: str, answer: str) -> Conversation:
    """One question about the image at path ``image`` and its answer; the image stands where the task's order
    has it."""
    asked = f"<image>\n{question}" if task.order == "image-first" else f"{question}\n<image>"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": turns}


def write_conversations(entries: Sequence[Conversation], path: Path) -> None:
    """Write ``entries`` as one JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(entries), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
