"""Wafers whose class was answered rightly and wrongly, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from benchmarks import statistics as st
from benchmarks.accuracy import truth_of
from benchmarks.assessment.texts import Table, percent
from benchmarks.cookbook.blocks import Block, Example, Gallery, Missing, Said, Sheet, Text
from benchmarks.cookbook.material import MAPS, Material
from benchmarks.cookbook.numbers import Sources, count
from benchmarks.cookbook.reading import parsed
from benchmarks.figures import NAMES
from benchmarks.predictions import ANSWERS
from benchmarks.scores import bundle_log_probs, samples_digest
from benchmarks.zero_shot import read_zero_shot
from train.dataset import Sample, read_split
from train.samples import at_most
from wafervlm.loading import load
from wafervlm.render import RenderSpec

Item = TypeVar("Item")

SHOWN, PER_CLASS = 9, 10
BEFORE, AFTER = "base", "bundle"


class Answers:
    """Label probabilities (N, L) of models by name on the same ``samples``."""

    def __init__(
        self, samples: Sequence[Sample], labels: Sequence[str], models: dict[str, st.Floats]
    ) -> None:
        self.samples, self.labels, self.models = list(samples), list(labels), models
        self.truth = truth_of(samples, labels)

    def right(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the samples ``name`` answers rightly."""
        return np.asarray(self.models[name].argmax(axis=1) == self.truth)

    def example(self, place: int) -> Example:
        """The wafer at ``place`` with what every model answers."""
        sample = self.samples[place]
        wafer = sample.wafer
        said = [
            Said(
                NAMES[name],
                f"{self.labels[int(values[place].argmax())]} {percent(float(values[place].max()))} %",
                bool(values[place].argmax() == self.truth[place]),
            )
            for name, values in self.models.items()
        ]
        about = f"{wafer.id or wafer.digest[:12]}, {wafer.shape[0]} x {wafer.shape[1]} dies"
        return Example(wafer, sample.label, about, said)


def answered(found: Material, sources: Sources) -> Iterator[Block]:
    """What changed from before to after on the same wafers, and pictures of right and wrong answers."""
    if found.report is not None and found.samples and f"{MAPS}_{AFTER}" in found.scores:
        temperatures = {AFTER: found.report["bundle"]["temperature"]}
        models = {
            name: st.calibrated(found.scores[f"{MAPS}_{name}"], temperatures.get(name, 1.0))
            for name in (BEFORE, AFTER)
            if f"{MAPS}_{name}" in found.scores
        }
        answers = Answers(found.samples, found.task.labels, models)
        source = sources.of(found.one("benchmark"))
        if BEFORE in models:
            yield from _changes(answers, source)
        yield from galleries(answers, found.task.render, source)
        return
    if found.absent:
        yield Missing(found.absent)
    kept = _kept(found)
    if kept is None:
        yield from _computed(found, sources)
        return
    source = sources.of(found.one("predictions"))
    if BEFORE in kept.models:
        yield from _changes(kept, source)
    yield from galleries(kept, found.task.render, source)


def _changes(answers: Answers, source: int | None) -> Iterator[Block]:
    before, after = answers.right(BEFORE), answers.right(AFTER)
    cells = [[count(int((was & now).sum())) for now in (after, ~after)] for was in (before, ~before)]
    table = Table(
        "The same wafers before and after",
        "",
        ("maps", "right after", "wrong after"),
        [("right before", *cells[0]), ("wrong before", *cells[1])],
    )
    yield Sheet(table, source)
    tops = [answers.models[name].argmax(axis=1) for name in (AFTER, BEFORE)]
    found = st.paired(answers.truth, tops[0], tops[1], st.lots_of(answers.samples))
    gain = found["difference"]
    yield Text(
        f"On the same wafers accuracy changed by {100 * gain['value']:+.1f} points "
        f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]; McNemar's exact test gives "
        f"p = {found['mcnemar_p']:.2g}."
    )


def galleries(answers: Answers, spec: RenderSpec, source: int | None) -> Iterator[Block]:
    """Pictures: put right, still wrong, and newly wrong, or right and wrong where there is no before."""
    after = answers.right(AFTER)
    if BEFORE in answers.models:
        before = answers.right(BEFORE)
        groups = {
            "Wrong before, right after": ~before & after,
            "Wrong after as before": ~before & ~after,
            "Right before, wrong after": before & ~after,
        }
    else:
        groups = {"Right": after, "Wrong": ~after}
    sure = answers.models[AFTER].max(axis=1)
    for title, members in groups.items():
        among = sorted(np.flatnonzero(members).tolist(), key=lambda i: -float(sure[i]))
        places = spread(among, lambda place: int(answers.truth[place]), SHOWN)
        if not places:
            yield Text(f"{title}: none.")
            continue
        note = f"{len(places)} of {int(members.sum())}, the surest of each class first."
        yield Gallery(
            title, note, [answers.example(i) for i in places], RenderSpec(144, 144, spec.palette), source
        )


def spread(items: Iterable[Item], label: Callable[[Item], Hashable], count: int) -> list[Item]:
    """The first ``count`` of ``items``, no label twice before every label was taken."""
    taken: Counter[Hashable] = Counter()
    turns = []
    for item in items:
        turns.append((taken[label(item)], item))
        taken[label(item)] += 1
    return [item for _, item in sorted(turns, key=lambda turn: turn[0])[:count]]


def _kept(found: Material) -> Answers | None:
    """Answers that the predict stage kept, with those of the zero-shot stage; None where their wafers are not
    in the dataset."""
    made, taken = found.one("predictions"), found.one("zero_shot")
    # Of a multi-label task no one answer is right or wrong.
    if made is None or found.task.multi_label or not (made.path / ANSWERS).is_file():
        return None
    lines = (made.path / ANSWERS).read_text(encoding="utf-8").splitlines()
    said = [parsed(line, made.path / ANSWERS) for line in lines]
    for dataset in found.chosen["dataset"]:
        samples = read_split(dataset.path, "test")
        if samples_digest(samples) != made.inputs.get("maps") or len(samples) != len(said):
            continue
        scores = [[one["scores"][label] for label in found.task.labels] for one in said]
        models = {AFTER: np.array(scores, dtype=np.float64)}
        before = None if taken is None else read_zero_shot(taken.path, found.task, samples)
        if before is not None:
            models = {BEFORE: st.calibrated(before, 1.0), **models}
        return Answers(samples, found.task.labels, models)
    return None


def _computed(found: Material, sources: Sources) -> Iterator[Block]:
    """Answers that a bundle gives now, where none are kept."""
    bundle, dataset = found.one("bundle"), found.one("dataset")
    if bundle is None or dataset is None or not found.predict:
        yield Missing(
            "No answers are kept for wafers that are at hand. Name the maps that were judged on with --maps, "
            "or a bundle with --bundle, which then answers maps of the dataset now."
        )
        return
    with load(bundle.path) as model:
        labels = model.task.labels
        samples = [s for s in read_split(dataset.path, "test") if s.label in labels]
        samples = [samples[i] for i in at_most([s.label for s in samples], PER_CLASS, 0)]
        scores = bundle_log_probs(model, samples)
        probabilities = st.calibrated(scores, model.manifest.temperature)
        task = model.task
    answers = Answers(samples, labels, {AFTER: probabilities})
    yield Text(
        f"{bundle.path.name} answered {len(samples)} test maps of {dataset.path.name} for this report."
    )
    source = sources.line(found.command, "report") if found.command else None
    yield from galleries(answers, task.render, source)
