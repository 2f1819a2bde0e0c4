"""The command ``wafervlm benchmark --words``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from wafervlm import console

_PATH = click.Path(path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNT, _AT_LEAST_ONE = click.IntRange(min=0), click.IntRange(min=1)


@click.command()
@click.option(
    "--words",
    is_flag=True,
    required=True,
    expose_value=False,
    help="Judge what is said in words. Without this, judge the classes that a bundle names.",
)
@click.option(
    "--subject",
    "subjects",
    multiple=True,
    required=True,
    metavar="NAME=FOLDER[+ADAPTER]",
    help="Who is asked: a bundle with words, or a checkpoint, with an adapter or without. May be repeated; "
    "each is compared with the one before it.",
)
@click.option(
    "--maps", type=_PATH, help="Labelled maps: dataset folder, .npz.  [default: planted ones alone]"
)
@click.option("--split", default="test", show_default=True, help="Part of a dataset folder.")
@click.option(
    "--per-class", type=_COUNT, default=0, help="Labelled maps at most of each class.  [default: all]"
)
@click.option(
    "--planted",
    type=_COUNT,
    default=330,
    show_default=True,
    help="Planted wafers, whose truth comes from their generator.",
)
@click.option(
    "--questions",
    type=_COUNT,
    default=1,
    show_default=True,
    help="Questions of each dimension about each labelled map, scored by rubrics.",
)
@click.option(
    "--system-turn",
    is_flag=True,
    help="Ask the questions of a folder of words as reinforcement learning does, with its system turn.",
)
@click.option("--classify/--no-classify", default=True, show_default=True, help="Take the accuracy too.")
@click.option("--task", type=_FILE, help="Task file.  [default: the first subject's own]")
@click.option("--causes", type=_FILE, help="Table of causes.  [default: train/vqa/causes.toml]")
@click.option("-o", "--out", type=_PATH, required=True, help="Folder of the report to write.")
@click.option("--answers", type=_PATH, help="Where answers are kept.  [default: OUT.answers.jsonl]")
@click.option("--max-tokens", type=_AT_LEAST_ONE, default=256, show_default=True, help="Of an answer.")
@click.option("--batch", type=_AT_LEAST_ONE, default=32, show_default=True, help="Wafers at a time.")
@click.option("--threads", type=_AT_LEAST_ONE, default=2, show_default=True)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where checkpoints answer.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option(
    "--judge", metavar="URL", help="OpenAI-compatible endpoint (.../v1) of a language model that judges."
)
@click.option("--model", help="The judge's name at the endpoint.")
@click.option("--judge-maps", type=_AT_LEAST_ONE, default=100, show_default=True, help="Maps judged at most.")
@click.option("--repeats", type=_AT_LEAST_ONE, default=2, show_default=True, help="Readings of each map.")
@click.option(
    "--trials", type=_AT_LEAST_ONE, default=200, show_default=True, help="Of the alignment's search."
)
@click.option("--price", type=(float, float), metavar="IN OUT", help="Of a million prompt and answer tokens.")
@click.option(
    "--per-minute", type=click.FloatRange(min=0), default=0.0, help="Requests.  [default: no limit]"
)
@click.option("--workers", type=_AT_LEAST_ONE, default=4, show_default=True, help="Requests at a time.")
@click.option("--retries", type=_COUNT, default=3, show_default=True, help="Of a failed request.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True)
@console.json_option
def benchmark(subjects: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Judge what subjects say of wafers: claims against the dies, rubrics, and a language model.

    All subjects describe the same maps. What they claim is checked against the dies, on planted maps against
    their generator's truth, before and after the station's check; rubrics score descriptions and answers to
    questions; with --judge a language model scores them too, and the rule score is aligned with it. Its key
    is read from $OPENAI_API_KEY. Answers are kept as they come: run the command again to go on.

    \b
    Example:
      wafervlm benchmark --words --subject nano=bundle/ --maps val.npz -o runs/words
      wafervlm benchmark --words --subject base=runs/base --subject sft=runs/base+runs/sft \\
        --maps runs/data --split test -o runs/words --judge http://localhost:8000/v1 --model qwen3
    """
    # Before transformers is imported: nothing is looked up, and tokenizers start no threads.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from benchmarks.assessment.stage import HTML, assess_words, require_judged
    from benchmarks.assessment.subjects import Subject
    from benchmarks.assessment.tables import headline

    shown = {"subjects": subjects, "out": out, **options}
    judge = _judge(options)
    options["device"] = _device(options["device"])
    from benchmarks.assessment.config import AssessmentConfig

    found = tuple(Subject.parse(text) for text in subjects)
    config = AssessmentConfig(subjects=found, judge=judge, **options)
    console.settings({**shown, "device": config.device})
    report, made = assess_words(config, out)
    console.say(f"wrote {out}" if made else f"{out} is complete and of these inputs already; nothing to do")
    summary = headline(report)
    if not as_json:
        for line in summary.lines:
            click.echo(line)
    console.json_line({"report": str(out / HTML), **summary.values})
    require_judged(config, out, report)
    console.next_command("open", out / HTML)


def _judge(options: dict[str, Any]) -> Any:
    """The judge that ``options`` ask for, which are taken out of them; None without an endpoint."""
    from benchmarks.assessment.config import JudgeConfig
    from train.vqa.endpoint import EndpointSettings
    from wafervlm.errors import UsageError

    url, model = options.pop("judge"), options.pop("model")
    own = {name: options.pop(option) for name, option in _OF_JUDGE.items()}
    asking = {name: options.pop(name) for name in ("per_minute", "workers", "retries", "timeout")}
    if url is None:
        if model is not None:
            raise UsageError("--model is the judge's; give its address as well: --judge URL")
        return None
    # Scores are to be those that the judge finds likeliest, and its JSON is short.
    return JudgeConfig(EndpointSettings(url, model or "", temperature=0.0, **asking), **own)


_OF_JUDGE = {"maps": "judge_maps", "repeats": "repeats", "trials": "trials", "prices": "price"}


def _device(asked: str) -> str:
    import torch

    from wafervlm.errors import SetupError

    if asked == "cuda" and not torch.cuda.is_available():
        raise SetupError("device is cuda and torch sees no GPU here; leave it out")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"
