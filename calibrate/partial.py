"""The finished layers of a calibration that is under way, kept beside its output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from calibrate.gptq import QuantizedWeight
from train.artefact import Provenance, is_complete, write_provenance
from wafervlm.errors import ManifestError
from wafervlm.files import flush_tree, replace_folder

_WEIGHTS, _ROWS = "weights.safetensors", "rows.json"


class Partial:
    """The folder ``<out>.partial``, with a folder for each finished layer; emptied first where it belongs to
    a calibration of other inputs or settings. Layers are written aside and renamed, so that one is there
    whole or not at all."""

    def __init__(self, out: Path, provenance: Provenance) -> None:
        self.path = out.with_name(out.name + ".partial")
        if not self._belongs_to(provenance):
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir(parents=True)
            write_provenance(self.path, provenance)

    def keep(self, index: int, weights: dict[str, QuantizedWeight], rows: list[dict[str, Any]]) -> None:
        """Store layer ``index``: its ``weights`` by full name and their ``rows`` of figures."""
        work, done = self.path / f"layer-{index}.writing", self.path / f"layer-{index}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        tensors = {f"{name}.levels": weight.levels.cpu().contiguous() for name, weight in weights.items()}
        tensors |= {f"{name}.scales": weight.scales.cpu().contiguous() for name, weight in weights.items()}
        save_file(tensors, work / _WEIGHTS)
        (work / _ROWS).write_text(json.dumps(rows), encoding="utf-8")
        flush_tree(work)
        replace_folder(work, done)

    def load(self, index: int) -> tuple[dict[str, QuantizedWeight], list[dict[str, Any]]] | None:
        """What ``keep`` stored for layer ``index``; None where it is not there."""
        folder = self.path / f"layer-{index}"
        try:
            tensors = load_file(folder / _WEIGHTS)
            rows: list[dict[str, Any]] = json.loads((folder / _ROWS).read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError):
            return None
        names = [str(row["layer"]) for row in rows]
        return {n: QuantizedWeight(tensors[f"{n}.levels"], tensors[f"{n}.scales"]) for n in names}, rows

    def _belongs_to(self, provenance: Provenance) -> bool:
        try:
            return is_complete(self.path, provenance)
        except ManifestError:  # killed before it was written whole
            return False

    def remove(self) -> None:
        """Delete the folder, once the output stands."""
        shutil.rmtree(self.path, ignore_errors=True)
