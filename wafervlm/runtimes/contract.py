"""What a graph must take and give, whichever runtime opened it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wafervlm.bundle import Bundle
from wafervlm.errors import LockError, ManifestError


@dataclass(frozen=True, slots=True)
class Port:
    """The element type of an input or output, as numpy names it, and its shape; None is a dynamic size."""

    type: str
    shape: Sequence[int | None]


def check_contract(bundle: Bundle, inputs: Mapping[str, Port], outputs: Mapping[str, Port]) -> None:
    """Refuse a graph that does not have the inputs and outputs that its manifest and task ask for.

    Raises ManifestError and LockError.
    """
    graph, task = bundle.manifest.graph, bundle.manifest.task
    where = bundle.path / graph.file
    if list(inputs) != [graph.input] or graph.output not in outputs:
        raise ManifestError(
            f"{where} has inputs {list(inputs)} and outputs {list(outputs)}, and the manifest names "
            f"{graph.input!r} and {graph.output!r}; export the bundle again"
        )
    taken, given = inputs[graph.input], outputs[graph.output]
    if (taken.type, given.type) != ("uint8", "float32") or taken.shape[0] is not None:
        raise ManifestError(
            f"{where} takes {taken.type} {list(taken.shape)} and gives {given.type}; it must take uint8 with "
            "a dynamic batch and give float32; export the bundle again"
        )
    for what, has, wants in (
        ("takes images", taken.shape[1:], [task.render.height, task.render.width, 3]),
        ("gives scores", given.shape[1:], [len(task.labels)]),
    ):
        if list(has) != wants:
            raise LockError(
                f"{where} {what} of shape {list(has)} and its task asks for {wants}; export the bundle again"
            )
