"""The command ``wafervlm data vqa``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from wafervlm import console

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--causes", type=FILE, help="Your own table of candidate causes.  [default: train/vqa/causes.toml]"
)
@click.option(
    "--per-class",
    type=click.IntRange(min=0),
    default=0,
    help="Maps at most of each class and part.  [default: all]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option(
    "--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that write rows."
)
@click.option(
    "--rewrite", "url", metavar="URL", help="Rewrite answers at this OpenAI-compatible endpoint (.../v1)."
)
@click.option("--model", help="The model's name at the endpoint.")
@click.option(
    "--per-minute", type=click.FloatRange(min=0), default=0.0, help="Requests a minute.  [default: no limit]"
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=4, show_default=True, help="Requests at a time."
)
@click.option(
    "--retries", type=click.IntRange(min=0), default=3, show_default=True, help="Of a failed request."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds each.",
)
@click.option("--price", type=(float, float), metavar="IN OUT", help="Of a million prompt and answer tokens.")
@click.option(
    "--replies",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Kept replies.  [default: OUT.replies.jsonl]",
)
@console.json_option
def vqa(
    dataset: Path,
    out: Path,
    url: str | None,
    model: str | None,
    price: tuple[float, float] | None,
    replies: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write descriptions, rubrics, questions and answers about the maps of DATASET.

    What is said of the dies is measured on them; candidate causes come from a table that you may edit. With
    --rewrite a language model words answers anew: a text that contradicts the dies, adds or leaves out a
    claim is dropped, and what was paid for is kept in a file: where the endpoint left requests without a
    reply, run the command again to go on. Its key is read from $OPENAI_API_KEY.

    \b
    Example:
      wafervlm data vqa runs/data -o runs/vqa
      wafervlm data vqa runs/data -o runs/vqa --rewrite http://localhost:8000/v1 --model qwen3
    """
    from train.vqa.build import VqaConfig, build_vqa, require_rewritten
    from train.vqa.endpoint import EndpointSettings
    from wafervlm.errors import UsageError

    if model is not None and url is None:
        raise UsageError("--model is the endpoint's; give its address as well: --rewrite URL")
    asking = {name: options.pop(name) for name in ("per_minute", "workers", "retries", "timeout")}
    endpoint = EndpointSettings(url=url, model=model or "", **asking) if url is not None else None
    config = VqaConfig(dataset=dataset, endpoint=endpoint, cache=replies, prices=price, **options)
    console.settings({"dataset": dataset, "out": out, **options, "rewrite": url, "model": model})
    counts, built = build_vqa(config, out)
    console.say(f"wrote {out}" if built else f"{out} is complete and of these inputs already; nothing to do")
    console.result({"vqa": str(out), **(counts if as_json else _shown(counts))}, as_json)
    require_rewritten(config, out, counts)
    console.next_command("wafervlm", "data", "lint", out)


def _shown(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Totals by part for people, and what became of rewriting."""
    shown: dict[str, Any] = {}
    for name, values in counts.items():
        if name == "rewrite":
            shown[name] = values
            continue
        shown[name] = {"wafers": values["wafers"]}
        shown[name] |= {kind: sum(values[kind].values()) for kind in ("questions", "prompts")}
        shown[name] |= values["questions"]
    return shown
