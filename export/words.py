"""What a bundle needs to generate text: two graphs, the tokenizer, and the chat template filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from export.builder import OPSET
from export.external import WeightFile
from export.families import graph_family
from export.features import features_graph
from export.parity import check_parity
from export.processor import normalisation_of
from export.sequence import image_grid
from export.step import step_graph
from export.weights import Weights
from train.tree import LabelTree, label_tree
from wafervlm.bundle import Bundle
from wafervlm.errors import CheckpointError, TaskError
from wafervlm.manifest import Vision
from wafervlm.render import RgbImage
from wafervlm.task import Task
from wafervlm.words.onnx_steps import OnnxSteps
from wafervlm.words.run import Limits, Run
from wafervlm.words.section import Words
from wafervlm.words.steps import Floats, Reader, Steps
from wafervlm.words.text import Language, lay_out

CONTEXT = 4096
# As outer white space is cut off a question, and some templates cut it, there is none here.
_QUESTION = "\N{DOUBLE QUESTION MARK}QUESTION\N{DOUBLE QUESTION MARK}"


# Each takes a forward pass over the whole prompt, and as many steps as the label tree has nodes.
CHECKED_MAPS = 2


@dataclass(frozen=True, slots=True)
class WordsContents:
    """What goes into a bundle so that it generates text: the manifest's ``section``, what the graphs and the
    tokenizer are made from, and the ``opset`` that the graphs are written in."""

    section: Words
    weights: Weights
    processor: Any
    opset: int = OPSET

    def build(self, task: Task, vision: Vision, file: WeightFile) -> dict[str, ir.Model]:
        """The graphs by the name of their file, with their weights in ``file``."""
        return words_models(self.weights, self.processor, task, self.section, vision, file, self.opset)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer as transformers uses it, for the tokenizers library alone."""
        backend = self.processor.tokenizer.backend_tokenizer
        (folder / self.section.tokenizer).write_text(backend.to_str(), encoding="utf-8", newline="\n")

    def check(self, bundle: Bundle, images: Sequence[RgbImage], reference: NDArray[np.floating]) -> float:
        """The largest difference of the step graph's label log-probabilities, at exact accuracy, from the
        ``reference`` (N, L) of transformers, on the first images. Raises GateError where it is above 1e-3."""
        tokenizer, few = self.processor.tokenizer, images[:CHECKED_MAPS]
        scores = words_scores(bundle, self.section, tokenizer, few, accuracy_level=0)
        return check_parity(scores, reference[:CHECKED_MAPS])


def words_section(weights: Weights, processor: Any, task: Task, context: int = CONTEXT) -> Words:
    """The manifest's section for the checkpoint behind ``weights``.

    ``context`` is cut to what the model was made for. Raises TaskError for a chat template that does not
    simply write the question, CheckpointError for a model whose positions are laid out otherwise.
    """
    config, tokenizer = weights.config, processor.tokenizer
    merge = config.vision_config.spatial_merge_size
    rows, columns = (side // merge for side in image_grid(task, config)[1:])
    opening, middle, closing = _template(tokenizer, task, config.image_token_id)
    settings = _generation_settings(weights)
    words = Words(
        opening=opening,
        middle=middle,
        closing=closing,
        image_token=int(config.image_token_id),
        grid=(rows, columns),
        stop=_stop_ids(settings, config, tokenizer),
        context=min(context, int(config.text_config.max_position_embeddings)),
        repetition_penalty=float(settings.repetition_penalty or 1.0),
    )
    _check_positions(words, config)
    return words


def words_models(
    weights: Weights,
    processor: Any,
    task: Task,
    words: Words,
    vision: Vision,
    file: WeightFile,
    opset: int = OPSET,
) -> dict[str, ir.Model]:
    """The two graphs that generate text, by the name of their file; their weights go to ``file``."""
    config = weights.config
    features = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()) or ())
    normalisation = normalisation_of(processor)
    integer = vision == "int8"
    return {
        words.features: features_graph(
            weights, normalisation, task, integer_vision=integer, file=file, opset=opset
        ),
        words.step: step_graph(weights, words.image_tokens, features, words.context, file, opset),
    }


def words_scores(
    bundle: Bundle, words: Words, tokenizer: Any, images: Sequence[RgbImage], *, accuracy_level: int
) -> NDArray[np.float64]:
    """Label log-probabilities (N, L) of ``images`` by the step graph, as a station generates: the prompt in
    one step, each token of an answer in one more, on the keys and values of those before.

    They are normalised at each branch of the label tree, as the classify graph's are, so that the two can
    be compared; what the graph gives at any other token is not looked at.
    """
    task = bundle.manifest.task
    tree = label_tree(tokenizer, task)
    language = Language(bundle, words)
    steps = OnnxSteps(bundle, words, accuracy_level=accuracy_level)
    return np.stack([_scores(steps, language, tree, task, image) for image in images])


def _scores(
    steps: Steps, language: Language, tree: LabelTree, task: Task, image: RgbImage
) -> NDArray[np.float64]:
    prompt = language.prompt(task.prompt, task.answer_prefix)
    deepest = max(node.depth for node in tree.nodes)
    reader = steps.read(image[None], len(prompt.ids) + deepest, Run(Limits()))
    root = reader.step(np.array(prompt.ids, np.int64), prompt.positions, prompt.rows)
    logits = [
        _walk(reader, tree, node, prompt.next_position) if node else root for node in range(len(tree.nodes))
    ]
    branches = [
        found[list(node.branches)].astype(np.float64) for found, node in zip(logits, tree.nodes, strict=True)
    ]
    shares = [values - np.logaddexp.reduce(values) for values in branches]
    return np.array([sum(shares[node][branch] for node, branch in path) for path in tree.paths])


def _walk(reader: Reader, tree: LabelTree, node: int, position: int) -> Floats:
    """Logits at ``node``, its path read token by token after the prompt."""
    start, logits = reader.length, np.empty(0, np.float32)
    path = [tree.nodes[index].token for index in reversed(tree.ancestors(node))]
    # The root has no token of its own: it is the end of the prompt.
    for depth, token in enumerate(token for token in path if token is not None):
        logits = reader.word(token, position + depth)
    reader.length = start
    return logits


def _template(tokenizer: Any, task: Task, image_token: int) -> tuple[str, str, str]:
    """What the chat template writes before, between and after question and image, whichever comes first."""
    mark = str(tokenizer.convert_ids_to_tokens(image_token))

    def render(question: str) -> str:
        messages = replace(task, prompt=question).messages()
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    text = render(_QUESTION)
    first, second = (_QUESTION, mark) if task.order == "text-first" else (mark, _QUESTION)
    opening, found, rest = text.partition(first)
    middle, also, closing = rest.partition(second)
    filled = task.prompt.strip()
    whole = {_QUESTION: filled, mark: mark}
    if not found or not also or render(filled) != opening + whole[first] + middle + whole[second] + closing:
        raise TaskError(
            "the chat template does not write question and image once each, as they are, so no station can "
            "fill it in; export without words, or use another template"
        )
    return opening, middle, closing


def _generation_settings(weights: Weights) -> Any:
    if not (weights.path / "generation_config.json").is_file():
        return GenerationConfig()
    try:
        return GenerationConfig.from_pretrained(weights.path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{weights.path}/generation_config.json cannot be read: {error}") from None


def _stop_ids(settings: Any, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer where transformers generates: those of the generation settings, else of
    the text core's configuration, else the tokenizer's."""
    for found in (settings.eos_token_id, config.text_config.eos_token_id, tokenizer.eos_token_id):
        if found is not None:
            return tuple(int(token) for token in (found if isinstance(found, (list, tuple)) else [found]))
    raise CheckpointError("neither generation_config.json nor the tokenizer says which token ends an answer")


def _check_positions(words: Words, config: Any) -> None:
    """Compare the station's positions with transformers' own, on an image with text on both sides."""
    before, after = 3, 4
    laid = lay_out([*[-1] * before, words.image_token, *[-1] * after], words)
    with torch.device("meta"):
        model = graph_family(config).model(config)
    merge = config.vision_config.spatial_merge_size
    rows, columns = words.grid
    wanted, _ = model.get_rope_index(
        torch.tensor([laid.ids]).clamp(min=0),
        mm_token_type_ids=torch.tensor([[int(row < words.image_tokens) for row in laid.rows]]),
        image_grid_thw=torch.tensor([[1, rows * merge, columns * merge]]),
    )
    if not np.array_equal(wanted[:, 0].numpy().T, laid.positions):
        raise CheckpointError(
            f"{config.model_type} lays out the positions of an image's tokens in another way than a station "
            "does; export without words"
        )
