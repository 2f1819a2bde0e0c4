"""Clusters of each label's maps: which are typical of it and which stand apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COMPONENTS = 32
MAPS_A_CLUSTER, MOST_CLUSTERS = 50, 8
NEIGHBOURS = 15


@dataclass(frozen=True, slots=True)
class Clusters:
    """Of N maps: the ``cluster`` (N,) within its label, the ``distance`` (N,) to that cluster's centre and
    its rank among the maps of the label, ``farness`` (N,) 0 the nearest to 1 the farthest."""

    cluster: Ints
    distance: Floats
    farness: Floats


def feature_space(geometry: Floats, vision: Floats, seed: int = 0) -> Floats:
    """Principal components (N, at most 32) of geometry and vision, standardised, both of equal weight."""
    blocks = [StandardScaler().fit_transform(block) / np.sqrt(block.shape[1]) for block in (geometry, vision)]
    joined = np.hstack(blocks)
    count = min(COMPONENTS, *joined.shape)
    return np.asarray(PCA(count, random_state=seed).fit_transform(joined))


def cluster_labels(space: Floats, labels: Ints, seed: int = 0) -> Clusters:
    """K-means within each label of ``labels`` (N,) over ``space`` (N, D): one cluster for every 50 maps, at
    least one and at most eight."""
    cluster, distance, farness = (np.zeros(len(labels), dtype) for dtype in (np.int64, float, float))
    for label in np.unique(labels):
        of = np.flatnonzero(labels == label)
        count = min(max(1, len(of) // MAPS_A_CLUSTER), MOST_CLUSTERS)
        fitted = KMeans(count, n_init=4, random_state=seed).fit(space[of])
        cluster[of] = fitted.labels_
        distance[of] = np.linalg.norm(space[of] - fitted.cluster_centers_[fitted.labels_], axis=1)
        farness[of] = np.argsort(np.argsort(distance[of], kind="stable")) / max(len(of) - 1, 1)
    return Clusters(cluster, distance, farness)


def representatives(found: Clusters, labels: Ints, count: int) -> dict[int, tuple[Ints, Ints]]:
    """For each label the rows near a centre, the nearest of each cluster in turn, and the rows farthest from
    theirs, the farthest first; at most ``count`` of each."""
    chosen = {}
    for label in np.unique(labels):
        of = np.flatnonzero(labels == label)
        place = np.zeros(len(of), dtype=np.int64)
        for cluster in np.unique(found.cluster[of]):
            members = np.flatnonzero(found.cluster[of] == cluster)
            place[members[np.argsort(found.distance[of][members], kind="stable")]] = np.arange(len(members))
        near = of[np.lexsort([found.cluster[of], place])][:count]
        far = of[np.argsort(-found.distance[of], kind="stable")][:count]
        chosen[int(label)] = (near, far)
    return chosen


def neighbour_labels(space: Floats, labels: Ints, groups: Ints, rows: Ints) -> Ints:
    """How many of the 15 nearest maps of other groups carry each label: (len(rows), L) for the ``rows`` asked
    of. Fewer where a map's own group crowds its surroundings."""
    counts = np.zeros((len(rows), int(labels.max()) + 1), dtype=np.int64)
    if not len(rows):
        return counts
    reach = min(4 * NEIGHBOURS, len(labels))
    near = NearestNeighbors(n_neighbors=reach).fit(space).kneighbors(space[rows], return_distance=False)
    for i, row in enumerate(rows):
        others = near[i][groups[near[i]] != groups[row]][:NEIGHBOURS]
        np.add.at(counts[i], labels[others], 1)
    return counts
