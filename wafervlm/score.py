"""Scoring an archive on Ray Data: parts of maps are read by tasks, answered by actors, written as Parquet.

Each actor loads the bundle once, on a GPU of its own or on some threads of the CPU. A part of the archive
becomes one Parquet file, written beside its name and renamed, so that a part that is there is complete: the
same command goes on after an interruption.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wafervlm import console
from wafervlm.archive import Archive, find_archive, read_part
from wafervlm.archive_files import Piece, import_pyarrow
from wafervlm.bundle import open_bundle
from wafervlm.engine import Engine, open_engine
from wafervlm.errors import UsageError
from wafervlm.files import check_writable, write_whole
from wafervlm.render import RenderSpec
from wafervlm.score_config import ScoreConfig
from wafervlm.score_parts import pack, part_file, totals, unpack, write_part
from wafervlm.score_process import drive_apart
from wafervlm.score_ray import is_running, no_gpu, running_ray

if TYPE_CHECKING:
    from wafervlm.model import WaferVLM

# Readers of Parquet folders pass over names that begin so.
PLAN, SUMMARY = "_plan.json", "_summary.json"
SECONDS_BETWEEN_NOTES = 10.0


def score_archive(paths: Sequence[Path], out: Path, config: ScoreConfig) -> dict[str, Any]:
    """Score every map of the files and folders ``paths`` into ``out``; return the totals.

    ``out`` gets part-00000.parquet and so on with the columns id, label, confidence, scores (one field for
    each label), bundle (digest) and error; a map that cannot be read has an error and no answer. Parts that
    are there already are left. Raises UsageError where ``out`` was begun from another archive or bundle or
    with other settings, or lies in the archive, IntegrityError for the bundle, SetupError for what this
    machine lacks.
    """
    bundle = open_bundle(config.bundle)
    engine = None if config.engine is None else open_engine(config.engine, bundle)
    import_pyarrow()
    for path in paths:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise UsageError(
                f"{out} lies in the archive {path}, whose maps would be counted with it; name "
                "a folder outside"
            )
    archive = find_archive(paths)
    parts = archive.parts(config.part_maps)
    plan = _plan(archive, bundle.digest, engine, config)
    _check_plan(out, plan)
    check_writable(out)
    missing = [number for number in range(len(parts)) if not part_file(out, number).is_file()]
    done = archive.count - sum(piece.count for number in missing for piece in parts[number])
    stand = len(parts) - len(missing)
    console.say(f"{archive.count} maps in {len(parts)} parts" + f", {stand} complete already" * bool(stand))
    if missing:
        wanted = [(number, parts[number]) for number in missing]
        _run(wanted, out, plan, config, done, archive.count)
    summary = {"maps": archive.count, "parts": len(parts), "scored": len(missing), "bundle": bundle.digest}
    summary |= totals(out, len(parts))
    write_whole(out / SUMMARY, json.dumps(summary, indent=1).encode())
    return summary


class Scorer:
    """Answers for the maps of a part and writes its file; one actor holds one."""

    def __init__(self, out: Path, bundle: Path | None, options: Mapping[str, Any]) -> None:
        """``options`` are those of ``wafervlm.load`` besides the bundle."""
        self._out, self._bundle, self._options = out, bundle, dict(options)
        self._model: WaferVLM | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take parts, as ``_read`` made them, and return for each its ``maps`` and ``errors``."""
        rows = [self._part(int(n), data) for n, data in zip(batch["part"], batch["maps"], strict=True)]
        return {key: np.array([row[key] for row in rows]) for key in ("part", "maps", "errors")}

    def _part(self, number: int, data: bytes) -> dict[str, int]:
        found = unpack(data)
        write_part(part_file(self._out, number), found, self._ready())
        return {"part": number, "maps": len(found), "errors": sum(bool(each.error) for each in found)}

    def _ready(self) -> WaferVLM:
        # Loaded here and not when the actor is made: what goes wrong then reaches the caller as it is.
        if self._model is None:
            from wafervlm.loading import load

            self._model = load(self._bundle, **self._options)
        return self._model


Plan = dict[str, Any]


def _plan(archive: Archive, digest: str, engine: Engine | None, config: ScoreConfig) -> Plan:
    """What decides the scores, to be compared with what a folder was begun with."""
    plan: Plan = {
        "archive": archive.fingerprint,
        "maps": archive.count,
        "bundle": digest,
        "part_maps": config.part_maps,
        "bins": None if config.bins is None else dict(sorted(config.bins.items())),
    }
    # Engines answer a little otherwise than the graph, and than each other.
    return plan if engine is None else {**plan, "engine": engine.manifest.file.sha256}


def _check_plan(out: Path, plan: Plan) -> None:
    """Raise UsageError where ``out`` is not empty and not the folder of exactly these scores."""
    path = out / PLAN
    if not path.is_file():
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"{out} is not empty and holds no {PLAN}; name a new folder")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in {**plan, **found} if found.get(key) != plan.get(key)]
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); name a new folder") from None
    if changed:
        raise UsageError(
            f"{out} holds scores that were begun otherwise ({', '.join(changed)} changed); "
            "name a new folder, or remove it to begin anew"
        )


def _claim(out: Path, plan: Plan) -> None:
    """Make ``out`` the folder of exactly these scores. Raises UsageError where it is of others."""
    _check_plan(out, plan)
    if not (out / PLAN).is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / PLAN, json.dumps(plan, indent=1).encode())


def _run(*arguments: Any) -> None:
    """``drive`` in a process of its own, but where this one has a Ray already, and on Windows."""
    if is_running() or os.name == "nt":
        drive(*arguments)
    else:
        drive_apart(*arguments)


def drive(
    parts: Sequence[tuple[int, list[Piece]]],
    out: Path,
    plan: Plan,
    config: ScoreConfig,
    done: int,
    total: int,
) -> None:
    """Score ``parts`` (number and pieces) into ``out`` on Ray; ``done`` of ``total`` maps are there already.
    Raises what ``score_archive`` does."""
    with running_ray(config) as ray:
        # What Ray cannot do here is known before anything is written.
        actors, needs = _actors(ray.cluster_resources(), config)
        _claim(out, plan)
        answered = _answered(ray, parts, out.resolve(), config, min(actors, len(parts)), needs)
        # Closed, it ends the threads that it asks Ray with, before Ray is ended.
        with contextlib.closing(iter(answered.iter_rows())) as rows:
            _follow(rows, done, total)


def _answered(
    ray: Any,
    parts: Sequence[tuple[int, list[Piece]]],
    out: Path,
    config: ScoreConfig,
    actors: int,
    needs: Mapping[str, float],
) -> Any:
    """The dataset whose rows, one for each part, appear as the parts are written."""
    bundle = None if config.bundle is None else config.bundle.resolve()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    items = [{"part": number, "pieces": _to_json(pieces)} for number, pieces in parts]
    reading = {
        "spec": open_bundle(config.bundle).manifest.task.render,
        "bins": None if config.bins is None else dict(config.bins),
    }
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    return dataset.map_batches(_read, batch_size=1, fn_kwargs=reading, num_cpus=0.5).map_batches(
        Scorer,
        fn_constructor_args=(out, bundle, config.loading),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        **needs,
    )


def _actors(resources: Mapping[str, float], config: ScoreConfig) -> tuple[int, dict[str, float]]:
    """How many actors there are, and what Ray sets aside for each. Raises ProviderError and UsageError."""
    gpus, cores = int(resources.get("GPU", 0)), resources.get("CPU", 1)
    if config.on_gpu:
        if gpus == 0:
            raise no_gpu(config)
        if (config.actors or 1) > gpus:
            raise UsageError(f"actors is {config.actors} and Ray sees {gpus} GPU(s); each needs its own")
        actors, needs = config.actors or gpus, {"num_gpus": 1.0, "num_cpus": 0.5}
    else:
        # Half a core in Ray's books: an actor waits while its next part is read by a task beside it.
        actors = config.actors or max(1, int(cores) // config.threads)
        needs = {"num_cpus": 0.5 * config.threads}
    if actors * needs["num_cpus"] + 0.5 > cores:
        raise UsageError(
            f"{actors} actors of {config.threads} thread(s) are too many for {cores:g} cores; "
            "lower actors or threads"
        )
    each = "a GPU" if config.on_gpu else f"{config.threads} thread(s)"
    console.say(f"{actors} actor(s), each with {each}")
    return actors, needs


def _to_json(pieces: Sequence[Piece]) -> str:
    return json.dumps([[str(p.path.resolve()), p.name, p.kind, p.first, p.count] for p in pieces])


def _read(batch: dict[str, Any], spec: RenderSpec, bins: Mapping[str, int] | None) -> dict[str, Any]:
    """The task that reads parts: their maps as bytes, so that no part is torn into several blocks."""
    packed = np.empty(len(batch["part"]), dtype=object)
    for i, text in enumerate(batch["pieces"]):
        part = [Piece(Path(path), *rest) for path, *rest in json.loads(text)]
        packed[i] = pack(read_part(part, spec, bins))
    return {"part": batch["part"], "maps": packed}


def _follow(rows: Iterable[Mapping[str, Any]], done: int, total: int) -> None:
    """Wait for the parts, and say now and then how far they are."""
    begun = noted = time.monotonic()
    first = done
    for row in rows:
        done += int(row["maps"])
        now = time.monotonic()
        if now - noted >= SECONDS_BETWEEN_NOTES or done == total:
            rate = (done - first) / max(now - begun, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done < total else ""
            console.say(f"score: {done}/{total}, {now - begun:.0f} s, {rate:.0f} maps per second{left}")
            noted = now
