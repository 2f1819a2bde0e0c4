"""Building the folder of words from a dataset folder: ``wafervlm data vqa``.

The folder is a dataset folder itself, with the same parts, maps and images, so that ``wafervlm train`` takes
it, and beside that::

    annotations/{train,tune,test}.json   the task's question, the descriptions and the questions, LLaVA-style
    sft.json            VQA rows                    descriptions.json   four descriptions of each wafer
    rl.json             RL rows                     rubrics.json        a rubric of each wafer
    counts.json         rows by part, type and difficulty; what became of rewriting
    causes.toml         the table of causes used    samples.html        some of each class, to look at
"""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from train.artefact import Provenance, folder_digest, is_complete, require_free, write_provenance, writing
from train.dataset import ANNOTATIONS, DIES, SPLIT, TASK, Sample, dataset_task, read_split
from train.llava import Conversation, conversation, write_conversations
from train.progress import track
from train.sources.npz import load_arrays
from train.split_files import PARTS
from train.vqa.causes import CAUSES, Causes, read_causes
from train.vqa.descriptions import QUESTIONS
from train.vqa.endpoint import Endpoint, EndpointSettings, require_replies
from train.vqa.replies import ReplyCache, check_prices
from train.vqa.rewrite import Draft, Report, rewrite
from train.vqa.rows import write_list, write_rows
from train.vqa.sheet import write_sheet
from train.vqa.wafers import Wafer, WaferRows, write_wafer
from wafervlm.errors import DatasetError, UsageError
from wafervlm.geometry import measure
from wafervlm.task import Task

SFT, DESCRIPTIONS, RUBRICS, RL = "sft.json", "descriptions.json", "rubrics.json", "rl.json"
COUNTS, TABLE, SHEET = "counts.json", "causes.toml", "samples.html"
# Types of answers that a rewriting may word otherwise: the rest are labels, or yes and no.
REWORDED = ("spatial", "morphological", "root_cause")


@dataclass(frozen=True)
class VqaConfig:
    """What to write. ``causes`` is the user's own table, the workshop's when None; ``per_class`` maps at most
    of each class and part, 0 for all; ``endpoint`` rewrites answers, its replies kept in ``cache``, beside
    the output when None; ``prices`` of a million prompt and completion tokens; ``processes`` that write."""

    dataset: Path
    causes: Path | None = None
    per_class: int = 0
    seed: int = 0
    endpoint: EndpointSettings | None = None
    cache: Path | None = None
    prices: tuple[float, float] | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if self.per_class < 0:
            raise UsageError(f"per_class is {self.per_class}; it must be 0 or more")
        if self.processes < 1:
            raise UsageError(f"processes is {self.processes}; it must be 1 or more")
        check_prices(self.prices)

    def replies(self, out: Path) -> Path:
        """Where the endpoint's replies are kept when ``out`` is written."""
        return self.cache or out.with_name(f"{out.name}.replies.jsonl")


def build_vqa(config: VqaConfig, out: Path) -> tuple[dict[str, Any], bool]:
    """Write the folder ``out``; return what counts.json holds, and whether it was written now.

    A complete ``out`` of the same inputs and settings is left as it is; one that was written while the
    endpoint left requests without a reply is written again, and asks for these. Raises DatasetError,
    UsageError, ConfigError for a table of causes that lacks a label, ProviderError for an endpoint that
    refuses all.
    """
    out, table = Path(out), config.causes or CAUSES
    task, causes = dataset_task(config.dataset), read_causes(table)
    causes.check_labels(task.labels)
    provenance = _provenance(config, table)
    known = is_complete(out, provenance)
    if known:
        counts: dict[str, Any] = json.loads((out / COUNTS).read_text(encoding="utf-8"))
        if not missing_replies(counts):
            return counts, False
    else:
        require_free(out, provenance)
    wafers = read_wafers(config.dataset, task, config.per_class, config.seed)
    rows = list(_written(wafers, causes, config, image_first=task.order == "image-first"))
    report = None
    if config.endpoint is not None:
        rows, report = _reworded(rows, config, causes, out)
    with writing(out, overwrite=known) as work:
        counts = _write(work, config, task, rows, causes, report)
        shutil.copyfile(table, work / TABLE)
        figures = {} if report is None else {"missing_replies": report.missing}
        write_provenance(work, replace(provenance, parity=figures))
    return counts, True


def missing_replies(counts: Mapping[str, Any]) -> int:
    """How many texts stand in a folder of these ``counts`` as they were for want of a reply."""
    return int(counts.get("rewrite", {}).get("missing", 0))


def require_rewritten(config: VqaConfig, out: Path, counts: Mapping[str, Any]) -> None:
    """Raise ProviderError where replies are missing in ``out``, whose ``counts`` these are."""
    if config.endpoint is not None:
        found, kept = counts["rewrite"], config.replies(out)
        require_replies(
            missing_replies(counts), found["asked"], config.endpoint.url, out, kept, found["dropped"]
        )


def read_wafers(dataset: Path, task: Task, per_class: int, seed: int) -> list[Wafer]:
    """The wafers of all parts of a dataset folder in its order, at most ``per_class`` of each class and part.
    Raises DatasetError."""
    arrays = load_arrays(dataset / DIES, ("split", "images"))
    wafers = []
    for part in [part for part in PARTS if (arrays["split"] == part).any()]:
        places = np.flatnonzero(arrays["split"] == part)
        samples = read_split(dataset, part)
        kept = _chosen([sample.label for sample in samples], per_class, seed)
        wafers += [_wafer(int(places[i]), str(arrays["images"][places[i]]), part, samples[i]) for i in kept]
    if not wafers:
        raise DatasetError(f"{dataset} has no map of the classes {', '.join(task.labels)}")
    return wafers


def _wafer(number: int, image: str, part: str, sample: Sample) -> Wafer:
    return Wafer(number, image, part, sample.label, sample.wafer.dies)


def _chosen(labels: Sequence[str], per_class: int, seed: int) -> list[int]:
    from train.samples import at_most

    return at_most(labels, per_class, seed)


def _written(
    wafers: Sequence[Wafer], causes: Causes, config: VqaConfig, *, image_first: bool
) -> Iterator[WaferRows]:
    one = functools.partial(write_wafer, causes=causes, seed=config.seed, image_first=image_first)
    if config.processes == 1:
        yield from track((one(wafer) for wafer in wafers), "write rows", len(wafers))
        return
    with ProcessPoolExecutor(config.processes) as pool:
        yield from track(pool.map(one, wafers, chunksize=64), "write rows", len(wafers))


def _reworded(
    rows: Sequence[WaferRows], config: VqaConfig, causes: Causes, out: Path
) -> tuple[list[WaferRows], Report]:
    settings = config.endpoint
    if settings is None:
        return list(rows), Report()
    endpoint = Endpoint(settings, ReplyCache(config.replies(out)))
    drafts = [draft for found in rows for draft in _drafts(found)]
    texts, report = rewrite(drafts, endpoint, causes, workers=settings.workers)
    return [found.reworded(texts) for found in rows], report


def _drafts(found: WaferRows) -> Iterator[Draft]:
    wafer = found.wafer
    measured = functools.partial(measure, wafer.dies)
    yield Draft(
        found.description_id("full"),
        QUESTIONS["full"],
        found.descriptions["full"],
        wafer.label,
        measured,
    )
    for row in found.questions:
        if row.question_type in REWORDED and row.kind != "defect type":
            yield Draft(row.id, row.query, row.answer, wafer.label, measured)


def _provenance(config: VqaConfig, table: Path) -> Provenance:
    settings: dict[str, Any] = {"per_class": config.per_class}
    if config.endpoint is not None:
        s = config.endpoint
        settings["rewrite"] = {
            "url": s.url,
            "model": s.model,
            "temperature": s.temperature,
            "max_tokens": s.max_tokens,
        }
    # The images are drawn from the dies, and are many.
    inputs = {name: folder_digest(config.dataset / name) for name in (DIES, TASK)}
    inputs["causes"] = folder_digest(table)
    return Provenance("vqa", inputs=inputs, settings=settings, seed=config.seed)


def _write(
    work: Path,
    config: VqaConfig,
    task: Task,
    rows: Sequence[WaferRows],
    causes: Causes,
    report: Report | None,
) -> dict[str, Any]:
    _copy_dataset(config.dataset, work, [found.wafer for found in rows])
    write_rows([row for found in rows for row in found.questions], work / SFT)
    write_rows([row for found in rows for row in found.prompts], work / RL)
    write_list(
        [{**found.heading(), "descriptions": dict(found.descriptions)} for found in rows], work / DESCRIPTIONS
    )
    write_list([{**found.heading(), "rubric": found.rubric.to_dict()} for found in rows], work / RUBRICS)
    parts = list(dict.fromkeys(found.wafer.part for found in rows))
    for part in parts:
        entries = [
            entry for found in rows if found.wafer.part == part for entry in _conversations(found, task)
        ]
        write_conversations(entries, work / ANNOTATIONS / f"{part}.json")
    write_sheet(work / SHEET, rows, causes)
    counts = count(rows)
    if report is not None:
        counts["rewrite"] = {**report.to_dict(), "cost": report.cost(config.prices)}
    (work / COUNTS).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    return counts


def count(rows: Iterable[WaferRows]) -> dict[str, Any]:
    """Of each part: wafers, questions by type and difficulty, prompts by dimension and difficulty."""
    counted: dict[str, Any] = {}
    for found in rows:
        of_part = counted.setdefault(
            found.wafer.part, {"wafers": 0, "questions": Counter(), "prompts": Counter()}
        )
        of_part["wafers"] += 1
        of_part["questions"].update(f"{row.question_type}, {row.difficulty}" for row in found.questions)
        of_part["prompts"].update(f"{row.dimension}, {row.difficulty}" for row in found.prompts)
    return {
        part: {
            **values,
            "questions": dict(sorted(values["questions"].items())),
            "prompts": dict(sorted(values["prompts"].items())),
        }
        for part, values in counted.items()
    }


def _conversations(found: WaferRows, task: Task) -> Iterator[Conversation]:
    name, image, label = found.wafer.name, found.wafer.image, found.wafer.label
    yield conversation(f"{name}-golden", image, task, task.prompt, task.answer(label))
    for kind, text in found.descriptions.items():
        yield conversation(found.description_id(kind), image, task, QUESTIONS[kind], text)
    for row in found.questions:
        yield conversation(row.id, image, task, row.query, row.answer)


def _copy_dataset(dataset: Path, work: Path, wafers: Sequence[Wafer]) -> None:
    for name in (TASK, SPLIT):
        if (dataset / name).is_file():
            shutil.copyfile(dataset / name, work / name)
    for wafer in track(wafers, "copy images"):
        (work / wafer.image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dataset / wafer.image, work / wafer.image)
    arrays = load_arrays(dataset / DIES, ("maps", "offsets", "split"))
    numbers = np.array([wafer.number for wafer in wafers])
    if len(numbers) == len(arrays["split"]):
        shutil.copyfile(dataset / DIES, work / DIES)
        return
    offsets, others = arrays["offsets"], [name for name in arrays if name not in ("maps", "offsets")]
    taken = {name: arrays[name][numbers] for name in others}
    taken["maps"] = np.concatenate([arrays["maps"][offsets[n] : offsets[n + 1]] for n in numbers])
    taken["offsets"] = np.cumsum([0, *(offsets[n + 1] - offsets[n] for n in numbers)], dtype=np.int64)
    np.savez_compressed(work / DIES, allow_pickle=False, **taken)
