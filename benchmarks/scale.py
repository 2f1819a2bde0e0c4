"""Latency at about 500 million parameters, where memory traffic and arithmetic are no longer nano's.

    python -m benchmarks.scale -o benchmarks/results/scale_500m.json

The weights are random and rounded to nearest: latency and memory are honest, accuracy there is none.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from benchmarks.latency import LatencySettings, measure_latency
from benchmarks.machine import describe_machine
from calibrate.gptq import Scheme, round_to_nearest
from calibrate.layers import linears
from calibrate.pack import write_quantized
from calibrate.replay import text_core
from export.stage import ExportConfig, export
from train.loading import load_checkpoint
from train.nano.config import Shape, build_model_folder, train_tokenizer
from train.nano.corpus import tokenizer_texts
from train.synthetic import wafers
from wafervlm import console
from wafervlm.render import RenderSpec
from wafervlm.task import WAFER_DEFECTS

HALF_BILLION = Shape(
    text_layers=20,
    text_width=1280,
    text_heads=20,
    text_kv_heads=4,
    head_dim=64,
    text_mlp=3840,
    vision_layers=12,
    vision_width=768,
    vision_heads=12,
    patch=16,
    image=256,
    deepstack=(3, 7),
)
TASK = replace(WAFER_DEFECTS, render=RenderSpec(256, 256))


def build(folder: Path, shape: Shape, group: int) -> tuple[Path, Path]:
    """Write a random checkpoint of ``shape`` and its 4-bit form to ``folder``; return both paths."""
    full, quantized = folder / "full", folder / "gptq"
    build_model_folder(
        full, shape, train_tokenizer(tokenizer_texts(seed=1, scenes=50), shape.vocabulary), seed=1
    )
    checkpoint, scheme = load_checkpoint(full), Scheme(group=group)
    weights = {
        name: round_to_nearest(module.weight.data, scheme)
        for index in range(len(text_core(checkpoint.model).layers))
        for name, module in linears(checkpoint.model, index).items()
    }
    quantized.mkdir()
    write_quantized(checkpoint, weights, scheme, quantized)
    return full, quantized


def measure(folder: Path, shape: Shape, settings: LatencySettings, group: int = 128) -> dict[str, Any]:
    """Build, export and time a random model of ``shape``; the figures for a report."""
    full, quantized = build(folder, shape, group)
    task = replace(TASK, render=RenderSpec(shape.image, shape.image))
    for source in (full, quantized):
        export(ExportConfig(source, task, name="random"), folder / f"{source.name}-bundle")
    labels = [TASK.labels[i % len(TASK.labels)] for i in range(settings.maps)]
    figures = measure_latency(
        folder / "gptq-bundle", folder / "full-bundle", full, task, wafers(labels, seed=5), settings
    )
    # Above 2 GB the weights lie beside the graph.
    sizes = {
        name: sum(f.stat().st_size for f in (folder / f"{name}-bundle").glob("model.onnx*")) / 1e6
        for name in ("full", "gptq")
    }
    parameters = sum(p.numel() for p in load_checkpoint(full).model.parameters())
    return {
        "parameters": parameters,
        "onnx_megabytes": sizes,
        "machine": describe_machine(settings.threads),
        **figures,
    }


@click.command(context_settings=console.HELP)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--maps", default=30, show_default=True, help="Calls timed of each contender.")
@click.option("--generate-maps", default=5, show_default=True, help="Calls timed of generate.")
@click.option("--threads", default=2, show_default=True)
def main(out: Path, maps: int, generate_maps: int, threads: int) -> None:
    """Time a random model of about 500 million parameters on this machine.

    Example: python -m benchmarks.scale -o benchmarks/results/scale_500m.json
    """
    settings = LatencySettings(maps=maps, generate_maps=generate_maps, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), HALF_BILLION, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_suffix(".writing")
    beside.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    beside.replace(out)
    console.result({"out": str(out), **figures["latency_ms"]}, as_json=True)


if __name__ == "__main__":
    main()
