"""A call recorded as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Captured:
    """``call`` on tensors of fixed shape, as one CUDA graph. What it returns is overwritten by the next call.

    ``example`` are inputs for the recording; ``call`` must neither wait for the device nor copy from the
    host. Everything it has to prepare once it prepares in the calls before the recording.
    """

    def __init__(self, call: Callable[..., Any], *example: torch.Tensor, warmup: int = 3) -> None:
        self._inputs = [tensor.clone() for tensor in example]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(warmup):
                call(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._output = call(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._output
