"""Wrong labels found on real maps: the workshop's ranking beside cleanlab's on the same probabilities.

    python -m benchmarks.cleaning --pool train_pool.npz -b train/nano/weights/base

On maps of the train part of a committed split 10 % of the labels are flipped, as the out-of-sample classifier
on the labels as they are confuses them: "by class" any map, to another class as its class is confused; "by
map" the maps that it is least sure of, to a class that it takes them for. Both then rank all maps. Wrong
labels that the public data has of itself count against both. cleanlab, which is needed for nothing else
(pip install cleanlab), is given every method that it documents; the best of them, on average, is compared.
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score

from benchmarks.machine import describe_machine
from train.artefact import folder_digest
from train.cleaning.duplicates import conflicts
from train.cleaning.features import Features, read_features
from train.cleaning.groups import judged_together
from train.cleaning.probabilities import out_of_sample
from train.cleaning.suspicion import suspicion
from train.progress import track
from train.samples import at_most
from train.sources import Rows, read_source
from train.split_files import apply_split, read_split_file, split_path
from train.splits import may_share_lot
from wafervlm import console
from wafervlm.errors import MissingDependencyError, UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Score = Callable[[Floats, Ints], Floats]

OURS = "wafervlm"
SHARES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Trial:
    """What is measured: ``flipped`` of the labels in each of ``seeds``, on at most ``per_class`` maps of each
    class of part train of ``split``."""

    per_class: int = 800
    flipped: float = 0.1
    seeds: tuple[int, ...] = tuple(range(10))
    split: str = "wm811k_pool"

    def __post_init__(self) -> None:
        if len(self.seeds) < 2:
            raise UsageError("an interval needs two draws of flips or more")
        if not 0 < self.flipped < 1:
            raise UsageError(f"a share of {self.flipped:g} of the labels cannot be flipped")


def train_side(rows: Rows, trial: Trial) -> tuple[Rows, int]:
    """Maps of part train of the split, and the number of the last of them: behind it come those that the
    source knows to carry another label elsewhere, of lots that are neither in tune nor in test."""
    parts = apply_split(rows, read_split_file(split_path(trial.split)))
    labels = [str(label) for label in rows.labels[parts["train"]]]
    chosen = parts["train"][at_most(labels, trial.per_class, 0)]
    disputed = np.flatnonzero(rows.conflicting())
    held = rows.take(np.concatenate([parts["tune"], parts["test"]]))
    disputed = np.setdiff1d(disputed[~may_share_lot(rows.take(disputed), held)], chosen)
    return rows.take(np.concatenate([chosen, disputed])), len(chosen)


def confusion_of(probabilities: Floats, labels: Ints) -> Floats:
    """(L, L): of the wrong answers about maps of a class, its row, the share that names each other class."""
    table = np.zeros((probabilities.shape[1],) * 2)
    np.add.at(table, (labels, probabilities.argmax(axis=1)), 1.0)
    np.fill_diagonal(table, 0.0)
    unconfused = table.sum(axis=1) == 0
    table[unconfused] = 1.0 - np.eye(len(table))[unconfused]
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def flip(labels: Ints, share: float, confusion: Floats, seed: int) -> Ints:
    """``labels`` (N,) with a ``share`` of them, drawn evenly over all, changed as ``confusion`` has it."""
    rng = np.random.default_rng(seed)
    flipped = labels.copy()
    for row in rng.choice(len(labels), round(share * len(labels)), replace=False):
        flipped[row] = rng.choice(len(confusion), p=confusion[labels[row]])
    return flipped


def flip_by_map(labels: Ints, share: float, probabilities: Floats, seed: int) -> Ints:
    """``labels`` (N,) with a ``share`` of them changed: maps drawn in proportion to what their
    ``probabilities`` (N, L) leave for other labels, each changed to one of these as probable as it is."""
    rng = np.random.default_rng(seed)
    others = probabilities.copy()
    np.put_along_axis(others, labels[:, None], 0.0, axis=1)
    doubt = others.sum(axis=1)
    flipped = labels.copy()
    for row in rng.choice(len(labels), round(share * len(labels)), replace=False, p=doubt / doubt.sum()):
        flipped[row] = rng.choice(others.shape[1], p=others[row] / doubt[row])
    return flipped


def contenders() -> dict[str, Score]:
    """Scores, high where a label looks wrong, by name: ours and cleanlab's. Raises MissingDependencyError."""
    return {OURS: lambda p, y: suspicion(p, y)[0], **_cleanlab()}


def _cleanlab() -> dict[str, Score]:
    try:
        rank = importlib.import_module("cleanlab.rank")
        found_issues = importlib.import_module("cleanlab.filter").find_label_issues
    except ImportError:
        raise MissingDependencyError(
            "the comparison needs cleanlab: pip install cleanlab in the workshop's environment"
        ) from None

    def quality(method: str, adjusted: bool) -> Score:
        return lambda p, y: -rank.get_label_quality_scores(y, p, method=method, adjust_pred_probs=adjusted)

    def pruned(p: Floats, y: Ints) -> Floats:
        # Confident learning: what it calls an issue comes before all else.
        issues = found_issues(y, p, filter_by="prune_by_noise_rate", n_jobs=1)
        return np.asarray(issues * 2.0 - rank.get_label_quality_scores(y, p, method="normalized_margin"))

    return {
        "cleanlab self_confidence": quality("self_confidence", False),
        "cleanlab self_confidence adjusted": quality("self_confidence", True),
        "cleanlab normalized_margin": quality("normalized_margin", False),
        "cleanlab normalized_margin adjusted": quality("normalized_margin", True),
        "cleanlab confidence_weighted_entropy": quality("confidence_weighted_entropy", False),
        "cleanlab prune_by_noise_rate, normalized_margin": pruned,
    }


def compare(rows: Rows, features: Features, known: int, trial: Trial) -> dict[str, Any]:
    """Flip, judge and rank for each seed; the figures. Maps from number ``known`` on are the disputed ones,
    which are judged on the labels as they are and left out of the flips."""
    scores = contenders()
    names, labels = np.unique(rows.labels, return_inverse=True)
    labels = labels.astype(np.int64)
    groups = judged_together(rows)
    clean = out_of_sample(features.geometry, features.vision, labels, groups)
    given, believed = labels[:known], clean[:known]
    confusion = confusion_of(believed, given)
    flips = {
        "by class": [flip(given, trial.flipped, confusion, seed) for seed in trial.seeds],
        "by map": [flip_by_map(given, trial.flipped, believed, seed) for seed in trial.seeds],
    }
    some = Features(features.geometry[:known], features.vision[:known])
    return {
        "maps": known,
        "classes": rows.take(slice(known)).class_counts(),
        "lots_or_blocks": len(np.unique(groups[:known])),
        "classifier": {
            "accuracy_out_of_sample": float((believed.argmax(axis=1) == given).mean()),
            "labels": names.tolist(),
            "confusion": np.round(confusion, 4).tolist(),
        },
        "flipped": {
            kind: found_of(drawn, given, some, groups[:known], trial, scores) for kind, drawn in flips.items()
        },
        "disputed": disputed(rows, clean, labels, known, scores),
    }


def found_of(
    drawn: list[Ints],
    given: Ints,
    features: Features,
    groups: Ints,
    trial: Trial,
    scores: Mapping[str, Score],
) -> dict[str, Any]:
    """How well the ``scores`` find what each of ``drawn`` changed in the labels ``given``."""
    found: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    for seed, noisy in track(list(zip(trial.seeds, drawn, strict=True)), "flip and judge"):
        wrong = noisy != given
        seen = out_of_sample(features.geometry, features.vision, noisy, groups, seed)
        for name, score in scores.items():
            ranked = score(seen, noisy)
            found[name].append(float(average_precision_score(wrong, ranked)))
            top = np.argsort(-ranked, kind="stable")[: int(wrong.sum())]
            first[name].append(float(wrong[top].mean()))
    return {
        **versus(found),
        "average_precision": {name: summary(values) for name, values in found.items()},
        "precision_among_as_many_as_flipped": {name: summary(values) for name, values in first.items()},
    }


def versus(found: Mapping[str, list[float]]) -> dict[str, Any]:
    """Ours less cleanlab's method of the best mean, on the same flips, with its interval."""
    best = max((name for name in found if name != OURS), key=lambda name: float(np.mean(found[name])))
    difference = np.asarray(found[OURS]) - np.asarray(found[best])
    return {"best_of_cleanlab": best, "ours_minus_best_of_cleanlab": summary(difference.tolist())}


def summary(values: list[float]) -> dict[str, Any]:
    """Mean of the draws with Student's 95 % interval of the mean."""
    mean, error = float(np.mean(values)), float(stats.sem(values))
    low, high = (mean, mean) if error == 0 else stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return {"mean": mean, "low": float(low), "high": float(high), "draws": [round(v, 4) for v in values]}


def disputed(
    rows: Rows, probabilities: Floats, labels: Ints, known: int, scores: Mapping[str, Score]
) -> dict[str, Any]:
    """Maps that carry two labels in the public data: how many are named since their copy is here, or since
    the source says so, and how many rank among the first by scores alone, which know of no copy."""
    listed = np.arange(known, len(rows))
    paired = {row for conflict in conflicts(rows) for row in conflict.rows}
    ranks = {}
    for name, score in scores.items():
        place = np.empty(len(rows))
        place[np.argsort(-score(probabilities, labels), kind="stable")] = np.arange(len(rows))
        shares = place[listed] / len(rows)
        ranks[name] = {f"first {share:.0%}": int((shares < share).sum()) for share in SHARES}
    return {
        "maps": len(listed),
        "labels": rows.labels[listed].tolist(),
        "named_by_digest": len(paired & set(listed.tolist())),
        "named_by_digest_or_source": int(rows.conflicting()[listed].sum()),
        "among_the_first_by_score": ranks,
    }


@click.command(context_settings=console.HELP)
@click.option("--pool", type=click.Path(path_type=Path), required=True, help="train_pool.npz of WM-811K.")
@click.option("-b", "--base", type=click.Path(path_type=Path), required=True, help="Checkpoint that looks.")
@click.option("--per-class", default=800, show_default=True, help="Maps of each class at most.")
@click.option("--draws", default=10, show_default=True, help="Draws of flipped labels.")
@click.option(
    "--features", "kept", type=click.Path(path_type=Path), help="File to keep the features in (.npz)."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("benchmarks/results/cleaning.json"),
    show_default=True,
)
def main(pool: Path, base: Path, per_class: int, draws: int, kept: Path | None, out: Path) -> None:
    """Flip labels as classes are confused and find them, beside cleanlab."""
    trial = Trial(per_class=per_class, seeds=tuple(range(draws)))
    contenders()
    rows, known = train_side(read_source(pool), trial)
    features = read_features(rows, base, keep=kept)
    figures = {
        "split": trial.split,
        "part": "train",
        "flipped_share": trial.flipped,
        "per_class_at_most": per_class,
        "inputs": {"pool": folder_digest(pool), "base": folder_digest(base)},
        "cleanlab": metadata.version("cleanlab"),
        "machine": describe_machine(1),
        **compare(rows, features, known, trial),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(".writing")
    beside.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    beside.replace(out)
    shown = {
        kind: {name: round(values["mean"], 4) for name, values in told["average_precision"].items()}
        for kind, told in figures["flipped"].items()
    }
    console.result({"out": str(out), **shown}, as_json=True)


if __name__ == "__main__":
    main()
