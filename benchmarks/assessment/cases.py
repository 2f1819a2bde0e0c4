"""The wafers that answers are judged on: labelled maps, and planted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.assessment.planted_places import label_of
from benchmarks.assessment.planted_ruler import PlantedRuler
from benchmarks.assessment.rulers import Measured, Ruler
from benchmarks.planted import KINDS, plant
from benchmarks.statistics import Ints, lots_of
from train.dataset import Sample
from train.progress import track
from wafervlm.geometry import measure_wafer
from wafervlm.wafermap import WaferMap

# The sides of nine of ten grids of WM-811K lie between these.
SMALLEST, LARGEST = 25, 66


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One wafer: what it shows by its ``label``, and the ``ruler`` that claims about it are held against."""

    wafer: WaferMap
    label: str
    ruler: Ruler


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """A set of wafers under a ``name``; ``lots`` (N,) are numbers of the lots that are resampled."""

    name: str
    cases: tuple[Case, ...]
    lots: Ints

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def samples(self) -> list[Sample]:
        """The wafers with their labels."""
        return [Sample(case.wafer, case.label) for case in self.cases]


def real_cases(samples: Sequence[Sample]) -> Cases:
    """Labelled maps, whose truth is measured on their dies."""
    cases = [Case(s.wafer, s.label, Measured(measure_wafer(s.wafer))) for s in track(samples, "measure maps")]
    return Cases("real", tuple(cases), lots_of(samples))


def planted_cases(count: int, seed: int) -> Cases:
    """``count`` planted wafers, as many of each kind, each a lot of its own."""
    rng, cases = np.random.default_rng([seed, 11]), []
    for number in range(count):
        shape = (int(rng.integers(SMALLEST, LARGEST + 1)), int(rng.integers(SMALLEST, LARGEST + 1)))
        dies, truth = plant(KINDS[number % len(KINDS)], rng, shape)
        wafer = WaferMap(dies, id=f"planted-{seed}-{number}")
        cases.append(Case(wafer, label_of(dies, truth), PlantedRuler(dies, truth)))
    return Cases("planted", tuple(cases), np.arange(count, dtype=np.int64))
