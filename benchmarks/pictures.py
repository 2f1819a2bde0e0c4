"""Wafers on which a bundle and its parent disagree, with what each answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.statistics import Floats, calibrated
from train.dataset import Sample
from wafervlm.render import RenderSpec
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap

TOP = 3


def disagreements(
    samples: Sequence[Sample], task: Task, bundle: Floats, reference: Floats, temperature: float
) -> list[dict[str, Any]]:
    """One entry for each wafer on which the two (N, L) label log-probabilities name different labels: its id,
    true label, picture, and both answers with their likeliest labels, most confident disagreement first."""
    ours, theirs = calibrated(bundle, temperature), calibrated(reference, 1.0)
    places = np.flatnonzero(ours.argmax(axis=1) != theirs.argmax(axis=1)).tolist()
    ordered = sorted(places, key=lambda i: -min(ours[i].max(), theirs[i].max()))
    return [
        {
            "id": samples[i].wafer.id,
            "digest": samples[i].wafer.digest,
            "truth": samples[i].label,
            "dies": f"{samples[i].wafer.shape[0]} x {samples[i].wafer.shape[1]}",
            "picture": picture(samples[i].wafer, task.render),
            "bundle": _answer(ours[i], task, samples[i].label),
            "reference": _answer(theirs[i], task, samples[i].label),
        }
        for i in ordered
    ]


def picture(wafer: WaferMap, spec: RenderSpec) -> str:
    """The wafer as a data URI: a PNG of one pixel for each die, in the task's colours, to be shown enlarged
    without blur and stretched to a square, as the renderer does."""
    image = Image.fromarray(wafer.dies)
    image.putpalette([value for colour in spec.palette for value in colour])
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _answer(probabilities: Floats, task: Task, truth: str) -> dict[str, Any]:
    order = np.argsort(-probabilities)[:TOP]
    best = task.labels[int(order[0])]
    likeliest = [{"label": task.labels[int(i)], "probability": float(probabilities[i])} for i in order]
    return {"label": best, "right": best == truth, "likeliest": likeliest}
