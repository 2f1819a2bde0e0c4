"""Out-of-sample label probabilities: what the other lots' labels say of a map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from train.progress import Progress
from wafervlm.errors import DatasetError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
TREES, COMPONENTS = 200, 160
# Wrong labels are among those learned from: strong regularisation keeps a model from learning them.
STRENGTH = 0.005
FLOOR = 1e-3


def out_of_sample(geometry: Floats, vision: Floats, labels: Ints, groups: Ints, seed: int = 0) -> Floats:
    """Label probabilities (N, L) of maps, each from models that saw no map of its group.

    ``geometry`` (N, G) and ``vision`` (N, V) are features, ``labels`` (N,) 0 to L - 1, ``groups`` (N,) the
    lots. Mean of extremely randomised trees on geometry and multinomial logistic regression on the principal
    components of both, no probability below 0.001. Raises DatasetError where there are fewer than two
    groups or classes.
    """
    folds = folds_of(labels, groups, seed)
    both = np.hstack([geometry, vision])
    found = np.zeros((len(labels), int(labels.max()) + 1))
    with Progress("judge labels", len(folds)) as progress:
        for learned, judged in folds:
            _check_classes(labels[learned])
            for features, model in _models(geometry, both, len(learned), seed):
                model.fit(features[learned], labels[learned])
                found[np.ix_(judged, model.classes_)] += model.predict_proba(features[judged])
            progress.advance()
    return floored(found)


def folds_of(labels: Ints, groups: Ints, seed: int = 0) -> list[tuple[Ints, Ints]]:
    """Pairs of row numbers, to learn from and to judge, that share no group and have a like mix of labels."""
    count = min(FOLDS, len(np.unique(groups)))
    if count < 2:
        raise DatasetError(
            "all maps are of one lot, or of one stretch of lot order; labels are judged by those of other "
            "lots: give maps of two or more"
        )
    # Too few maps of a class for every fold: it is then unknown in some, and nothing is said of it.
    usual = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return _without_warnings(usual, labels, groups)


def floored(probabilities: Floats) -> Floats:
    """Rows that sum to 1, none below ``FLOOR``: a tree that saw no such map knows no certainty."""
    raised = np.maximum(probabilities / probabilities.sum(axis=1, keepdims=True), FLOOR)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _check_classes(learned: Ints) -> None:
    if len(np.unique(learned)) < 2:
        raise DatasetError(
            "the maps of all other lots carry one label; labels are judged by comparing two or more classes, "
            "each in several lots"
        )


def _models(geometry: Floats, both: Floats, rows: int, seed: int) -> Iterator[tuple[Floats, Any]]:
    yield geometry, ExtraTreesClassifier(TREES, max_features=12, random_state=seed)
    components = min(COMPONENTS, both.shape[1], rows)
    yield (
        both,
        make_pipeline(
            StandardScaler(),
            PCA(components, random_state=seed),
            LogisticRegression(C=STRENGTH, max_iter=300),
        ),
    )


def _without_warnings(cut: Any, labels: Ints, groups: Ints) -> list[tuple[Ints, Ints]]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(cut.split(np.zeros((len(labels), 1)), labels, groups))
