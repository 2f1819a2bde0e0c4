"""The predict stage of a line: what a bundle answers for labelled maps, through the public ``predict``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scores import samples_digest
from train.artefact import Provenance, is_complete, read_provenance, write_provenance, writing
from train.dataset import Sample
from train.progress import track
from wafervlm.bundle import open_bundle
from wafervlm.loading import load

STAGE, ANSWERS, EXAMPLE = "predict", "predictions.jsonl", "example.npy"


def predict_maps(bundle: Path, samples: Sequence[Sample], out: Path, threads: int) -> dict[str, Any]:
    """Write predictions.jsonl, a picture of the first map of each class and a map as .npy to ``out``.

    Returns how many maps there were, how many were answered rightly, and the milliseconds for each.
    """
    inputs = {"bundle": open_bundle(bundle).digest, "maps": samples_digest(samples)}
    provenance = Provenance(STAGE, inputs, {"threads": threads})
    if is_complete(out, provenance):
        return dict(read_provenance(out)["parity"])
    with load(bundle, threads=threads) as model, writing(out, overwrite=True) as work:
        started = time.perf_counter()
        answers = [model.predict(sample.wafer) for sample in track(samples, "predict")]
        spent = time.perf_counter() - started
        with (work / ANSWERS).open("w", encoding="utf-8") as file:
            for sample, answer in zip(samples, answers, strict=True):
                file.write(json.dumps({**answer.to_dict(), "truth": sample.label}) + "\n")
        for label in model.task.labels:
            first = next((i for i, sample in enumerate(samples) if sample.label == label), None)
            if first is not None:
                answers[first].plot().save(work / f"{label}.png")
        np.save(work / EXAMPLE, samples[0].wafer.dies)
        figures = {
            "maps": len(samples),
            "right": sum(a.label == s.label for a, s in zip(answers, samples, strict=True)),
            "ms_each": round(1e3 * spent / len(samples), 3),
        }
        write_provenance(work, Provenance(STAGE, inputs, {"threads": threads}, parity=figures))
    return figures
