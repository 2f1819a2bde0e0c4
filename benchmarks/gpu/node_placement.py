"""Where ONNX Runtime runs the nodes of a bundle's graph.

A node that the CUDA provider has no kernel for runs on the CPU without a word, and what it takes and gives
crosses the bus on every call. Only a profile of the run shows it.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from wafervlm.bundle import Bundle
from wafervlm.render import RgbImage
from wafervlm.runtimes.onnx import open_session

_SUFFIX = "_kernel_time"


def node_placement(bundle: Bundle, images: RgbImage, device: str) -> dict[str, Any]:
    """Run ``images`` uint8 (B, H, W, 3) once on ``device``, cpu or cuda, after one call to warm up.

    Gives for each provider its nodes by operator, most first, and the ``host_ms`` that it spent on them: on a
    GPU that is the time to launch them. Raises what opening a session raises.
    """
    graph = bundle.manifest.graph
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(
            bundle,
            graph.file,
            device=device,
            threads=None,
            accuracy_level=graph.accuracy_level,
            profile=Path(folder) / "nodes",
        )
        feed = {session.get_inputs()[0].name: np.ascontiguousarray(images)}
        for _ in range(2):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return {"providers": _by_provider([event for event in events if event.get("cat") == "Node"])}


def _by_provider(events: list[dict[str, Any]]) -> dict[str, Any]:
    ran = [event for event in events if str(event["name"]).endswith(_SUFFIX)]
    # The second run's half: both run every node in the same order.
    last = ran[len(ran) // 2 :]
    found: dict[str, Any] = {}
    for provider in sorted({event["args"]["provider"] for event in last}):
        mine = [event for event in last if event["args"]["provider"] == provider]
        operators = Counter(event["args"]["op_name"] for event in mine)
        found[provider] = {
            "nodes": len(mine),
            "operators": dict(operators.most_common()),
            "host_ms": sum(event["dur"] for event in mine) / 1e3,
        }
    return found
