"""The embedded bundle, rebuilt from its committed base and adapter: merge, calibrate, export.

::

    python -m export.nano           write the bundle into the package
    python -m export.nano --check   rebuild it elsewhere and compare its scores with the package's

With ``--keep DIR`` the full-precision parent stays in DIR/merged, for ``wafervlm benchmark --reference``.

Calibration and temperature need the maps that nano was adapted on: train_pool.npz of WM-811K.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from scipy.special import rel_entr

from calibrate.gptq import Scheme
from calibrate.stage import CalibrateSettings, calibrate
from export.parity import graph_scores
from export.stage import ExportConfig, export
from train.build import BuildConfig, build_dataset
from train.merge import MergeSettings, merge
from train.nano.config import NANO
from train.sources import read_source
from train.split_files import apply_split, read_split_file, split_path
from wafervlm import console
from wafervlm.bundle import EMBEDDED, Bundle, open_bundle
from wafervlm.errors import GateError, UsageError, WaferVLMError
from wafervlm.golden import read_golden
from wafervlm.manifest import Vision
from wafervlm.render import RenderSpec, render
from wafervlm.task import WAFER_DEFECTS, Task

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
# Two labels closer than this, in nats, may change places with a rounding.
NEAR_TIE = 0.1
WEIGHTS = ROOT / "train" / "nano" / "weights"
TASK = replace(WAFER_DEFECTS, render=RenderSpec(NANO.image, NANO.image))


@dataclass(frozen=True, slots=True)
class NanoRecipe:
    """How the embedded bundle is made from ``weights``/base and ``weights``/adapter.

    Calibration takes ``maps`` of each class from the train side of ``split``; the temperature is fitted on
    all maps of its tune part, in their natural mix, since that is what a station sees.
    """

    weights: Path = WEIGHTS
    split: str = "wm811k_pool"
    task: Task = TASK
    maps: int = 60
    group: int = 32
    words: int = 270
    """So many of the calibration maps are described too, since the bundle describes."""
    accuracy_level: int = 0
    """Exact: on matrices as small as nano's, 8-bit activations gain nothing in the 4-bit products."""
    vision: Vision = "int8"
    """In float32 the vision tower's products take more time than all else (ONNX Runtime's profile)."""


def rebuild(source: Path, work: Path, out: Path, recipe: NanoRecipe) -> None:
    """Make the bundle ``out`` from the committed weights and the maps of ``source``, by way of ``work``."""
    for name in ("base", "adapter"):
        if not (recipe.weights / name).is_dir():
            raise UsageError(f"there is no {name} at {recipe.weights / name}; get a whole checkout")
    data = work / "data"
    chosen = BuildConfig(
        source, train=recipe.maps, tune=recipe.maps, test=1, task=recipe.task, split=recipe.split
    )
    build_dataset(chosen, data)
    base, adapter = recipe.weights / "base", recipe.weights / "adapter"
    merge(base, adapter, data, work / "merged", MergeSettings("float16"))
    maps = recipe.maps * len(recipe.task.labels)
    settings = CalibrateSettings(scheme=Scheme(group=recipe.group), maps=maps, words=min(recipe.words, maps))
    calibrate(work / "merged", data, work / "gptq", settings)
    config = ExportConfig(
        checkpoint=work / "gptq",
        task=recipe.task,
        tune=_tune_maps(source, recipe, work / "tune.npz"),
        accuracy_level=recipe.accuracy_level,
        vision=recipe.vision,
        words=True,
        name="wafervlm-nano",
        wm811k=True,
        ancestors=(recipe.weights / "base", recipe.weights / "adapter"),
    )
    export(config, out, replace=True)


def compare(rebuilt: Bundle, shipped: Bundle) -> dict[str, float]:
    """Scores of both bundles on the golden maps of ``shipped``: largest difference of label
    log-probabilities, mean KL in nats, and the share of equal labels among the maps on which the shipped
    bundle's label leads the next by NEAR_TIE nats or more."""
    task, golden = shipped.manifest.task, read_golden(shipped)
    if rebuilt.manifest.task_digest != shipped.manifest.task_digest:
        raise GateError("the rebuilt bundle answers another task than the embedded one")
    images = [render(wafer, task.render) for wafer in golden.maps]
    new, old = (
        graph_scores(bundle, images, accuracy_level=0).astype(np.float64) for bundle in (rebuilt, shipped)
    )
    first, second = np.sort(old, axis=1)[:, :-3:-1].T
    clear = first - second >= NEAR_TIE
    return {
        "max_abs_difference": float(np.abs(new - old).max()),
        "kl": float(rel_entr(np.exp(old), np.exp(new)).sum(axis=1).mean()),
        "label_agreement": float((new.argmax(axis=1) == old.argmax(axis=1))[clear].mean()),
    }


def check(figures: dict[str, float]) -> None:
    """Raise GateError where a rebuilt bundle is not the embedded one.

    Another processor may round a weight the other way in GPTQ: scores may then differ a little, answers not.
    """
    if figures["label_agreement"] < 1 or figures["kl"] > 0.01:
        raise GateError(
            f"the rebuilt bundle is not the embedded one: on its golden maps labels agree on "
            f"{figures['label_agreement']:.1%} and the mean KL is {figures['kl']:.2g} nats (0.01 is allowed)"
        )


def _tune_maps(source: Path, recipe: NanoRecipe, path: Path) -> Path:
    rows = read_source(source)
    tune = rows.take(apply_split(rows, read_split_file(split_path(recipe.split)))["tune"])
    grids = [tune.grid(row).ravel() for row in range(len(tune))]
    offsets = np.cumsum([0, *(grid.size for grid in grids)])
    np.savez(
        path,
        maps=np.concatenate(grids),
        offsets=offsets,
        heights=tune.heights,
        widths=tune.widths,
        labels=tune.labels,
    )
    return path


def _default_source() -> Path:
    folder = Path(os.environ.get("WAFERVLM_DATA", ROOT.parent / "shared" / "data"))
    return folder / "wm811k" / "train_pool.npz"


@click.command(context_settings=console.HELP)
@click.option("--check", "only_check", is_flag=True, help="Compare a rebuilt bundle with the embedded one.")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    default=None,
    help="train_pool.npz.  [default: $WAFERVLM_DATA/wm811k/train_pool.npz]",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder in which to keep what comes before the bundle: data, merged, gptq.  [default: none is kept]",
)
@console.json_option
def main(only_check: bool, source: Path | None, keep: Path | None, as_json: bool) -> None:
    """Rebuild the embedded bundle from its committed base and adapter.

    \b
    Example:
      python -m export.nano --check
    """
    source = source or _default_source()
    if not source.is_file():
        raise UsageError(f"there are no maps at {source}; set WAFERVLM_DATA to the folder that holds wm811k/")
    recipe = NanoRecipe()
    console.settings({"source": source, "weights": recipe.weights, "check": only_check})
    with tempfile.TemporaryDirectory(prefix="wafervlm-nano-") as folder:
        work = keep or Path(folder)
        out = work / "bundle" if only_check else EMBEDDED
        rebuild(source, work, out, recipe)
        if only_check:
            figures = compare(open_bundle(out), open_bundle())
            console.result(figures, as_json)
            check(figures)
            return
    console.result({"bundle": str(out), "digest": open_bundle(out).digest}, as_json)
    console.next_command("wafervlm", "verify")


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except WaferVLMError as error:
        console.say(f"Error: {error}")
        sys.exit(error.exit_code)
