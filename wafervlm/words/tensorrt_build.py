"""Building the two engines that generate text: the vision tower's, and the steps' with two profiles."""

from __future__ import annotations

from wafervlm.bundle import Bundle
from wafervlm.errors import UsageError
from wafervlm.runtimes.cuda import ALIGNMENT
from wafervlm.runtimes.tensorrt_api import DataType, IHostMemory, INetworkDefinition
from wafervlm.runtimes.tensorrt_build import Recipe, Report, Shapes, build_graph
from wafervlm.runtimes.tensorrt_target import Target
from wafervlm.words.section import Words
from wafervlm.words.steps import FEATURES, IMAGE, LOGITS, MASK, PAST, POSITIONS, ROWS, TOKENS

MAX_PROMPT = 1024
"""Tokens read at once, unless told otherwise: memory for them is set aside."""
# What a question usually takes with its template, and an answer after it.
_QUESTION, _ANSWER = 64, 64


def build_features(
    bundle: Bundle, words: Words, target: Target, *, precision: str, report: Report | None = None
) -> IHostMemory:
    """Build the engine of the vision tower alone and return its bytes as a buffer; ``report`` and errors are
    those of ``build_engine``."""
    types = target.library.module.DataType
    recipe = Recipe(
        file=words.features,
        inputs=lambda _: {IMAGE: types.UINT8},
        outputs=lambda _: {FEATURES: types.FLOAT},
        profiles=lambda _: [],  # its shapes never change
        size="one image",
        lower="what else runs here",
    )
    return build_graph(bundle, target, recipe, precision=precision, report=report)


def build_step(
    bundle: Bundle,
    words: Words,
    target: Target,
    *,
    precision: str,
    max_prompt: int,
    report: Report | None = None,
) -> IHostMemory:
    """Build the engine of the steps for prompts of up to ``max_prompt`` tokens read at once, and for single
    tokens up to the bundle's context; ``report`` and errors are those of ``build_engine``."""
    types = target.library.module.DataType
    floating: DataType = types.FLOAT

    def inputs(network: INetworkDefinition) -> dict[str, DataType]:
        whole = dict.fromkeys((TOKENS, POSITIONS, ROWS), types.INT64)
        return {**whole, **dict.fromkeys((FEATURES, MASK, *pasts(network)), floating)}

    def outputs(network: INetworkDefinition) -> dict[str, DataType]:
        return dict.fromkeys((LOGITS, *(name.removeprefix(PAST) for name in pasts(network))), floating)

    recipe = Recipe(
        file=words.step,
        inputs=inputs,
        outputs=outputs,
        profiles=lambda network: step_profiles(pasts(network), words, max_prompt),
        size=f"prompts of {max_prompt} tokens",
        lower="--max-prompt",
    )
    return build_graph(bundle, target, recipe, precision=precision, report=report)


def pasts(network: INetworkDefinition) -> dict[str, int]:
    """The inputs that hold earlier keys and values, with their width. Raises UsageError where no engine can
    append to them in place."""
    tensors = map(network.get_input, range(network.num_inputs))
    found = {tensor.name: tensor.shape[-1] for tensor in tensors if tensor.name.startswith(PAST)}
    narrow = next((width for width in found.values() if 4 * width % ALIGNMENT), None)
    if narrow is not None:
        raise UsageError(
            f"the keys of this model are {narrow} numbers a token, and TensorRT takes tensors that begin at "
            f"multiples of {ALIGNMENT} bytes; build the engine without --words"
        )
    return found


def step_profiles(widths: dict[str, int], words: Words, max_prompt: int) -> list[Shapes]:
    """The profiles of a prompt and of a word: least, usual and most tokens T after P others."""
    usual = words.image_tokens + _QUESTION
    prompt = _profile(widths, (1, min(usual, max_prompt), max_prompt), (0, 0, 0))
    most = words.context - 1
    word = _profile(widths, (1, 1, 1), (1, min(usual + _ANSWER, most), most))
    return [prompt, word]


def _profile(widths: dict[str, int], tokens: tuple[int, ...], past: tuple[int, ...]) -> Shapes:
    rows: list[dict[str, tuple[int, ...]]] = [
        {
            TOKENS: (1, new),
            POSITIONS: (1, new, 3),
            ROWS: (new,),
            MASK: (new, new + old),
            **{name: (1, old, width) for name, width in widths.items()},
        }
        for new, old in zip(tokens, past, strict=True)
    ]
    least, usual, most = rows
    return {name: (least[name], usual[name], most[name]) for name in least}
