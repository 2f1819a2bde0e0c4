"""The provenance of a checkpoint: its own record and those of what it was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path, PurePath
from typing import Any

from train.artefact import PROVENANCE, folder_digest, read_provenance
from wafervlm.task import RECIPE_LABELS

_PAPER = (
    'Ming-Ju Wu, Jyh-Shing Roger Jang, and Jui-Long Chen, "Wafer Map Failure Pattern Recognition and '
    'Similarity Ranking for Large-Scale Data Sets," in IEEE Transactions on Semiconductor Manufacturing, '
    "vol. 28, no. 1, pp. 1-12, Feb. 2015, doi: 10.1109/TSM.2014.2364237."
)
_DATA = (
    "MIR-WM811K: Dataset for wafer map failure pattern recognition, 2015 http://mirlab.org/dataset/public/"
)
WM811K_CITATIONS = (_PAPER, _DATA)


def collect_chain(checkpoint: Path, others: Iterable[Path] = ()) -> tuple[dict[str, Any], ...]:
    """The records that lead to ``checkpoint``, oldest stage first, ending with its own.

    A record names its inputs by digest; each is looked for among ``others`` and the folders beside the
    checkpoint. What is not found stays a digest. Absolute paths in settings are cut to their last part.
    """
    records: dict[str, dict[str, Any]] = {}
    known: dict[str, Path] | None = None
    waiting = [folder for folder in (checkpoint, *others) if (folder / PROVENANCE).is_file()]
    while waiting:
        folder = waiting.pop(0)
        record = read_provenance(folder)
        digest = folder_digest(folder)
        if digest in records:
            continue
        records[digest] = {**_portable(record), "digest": digest}
        wanted = set(record.get("inputs", {}).values()) - records.keys()
        if wanted:
            known = _folders_by_digest(checkpoint) if known is None else known
            waiting += [known[value] for value in wanted if value in known]
    # By what is made from what: two stages may end within one second.
    oldest_first = sorted(records, key=lambda digest: str(records[digest].get("created", "")))
    order = TopologicalSorter(
        {digest: set(records[digest].get("inputs", {}).values()) & records.keys() for digest in oldest_first}
    )
    return tuple(records[digest] for digest in order.static_order())


def citations_of(records: Iterable[Mapping[str, Any]], wm811k: bool | None) -> tuple[str, ...]:
    """The citations that go with the data: WM-811K's, unless ``wm811k`` is False.

    With None they go in when a data stage read maps that are not synthetic and carry WM-811K's class names.
    """
    used = any(
        record.get("stage") == "data"
        and record.get("inputs", {}).get("source") != "synthetic"
        and set(RECIPE_LABELS) <= set(record.get("settings", {}).get("task", {}).get("labels", ()))
        for record in records
    )
    return WM811K_CITATIONS if wm811k or (wm811k is None and used) else ()


def _folders_by_digest(checkpoint: Path) -> dict[str, Path]:
    beside = [path for path in checkpoint.resolve().parent.iterdir() if (path / PROVENANCE).is_file()]
    return {folder_digest(path): path for path in beside}


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item) for item in value]
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return value
