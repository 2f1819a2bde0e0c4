"""The command ``wafervlm data lint``."""

from __future__ import annotations

from pathlib import Path

import click

from wafervlm import console


@click.command()
@click.argument("path", metavar="VQA", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--formula",
    type=click.Choice(["published", "optimised", "strict"]),
    default="strict",
    show_default=True,
    help="The rule score that is the reward: as WaferSAGE published it, as it was optimised against a judge, "
    "or strict, where an answer that says nothing or everything earns nothing.",
)
@click.option(
    "--reference",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="What reference answers must earn at least.",
)
@click.option(
    "--attack",
    type=click.FloatRange(0, 1),
    default=0.6,
    show_default=True,
    help="What constant, empty, wrong-class and keyword-stuffed answers may earn at most.",
)
@click.option(
    "--completions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Answers of a model, as JSON (lines) of {"id", "completions": [...]}, to take the share of '
    "zero-advantage groups from.  [default: simulated from references]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@console.json_option
def lint(
    path: Path,
    formula: str,
    reference: float,
    attack: float,
    completions: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Check that a set of rubrics is a sound reward, before a model is trained on it.

    VQA is a folder that `wafervlm data vqa` wrote, or a .json or .jsonl file of RL rows, in the published
    WaferSAGE layout too. Exits with 5 where reference answers earn little, where answers that look at no
    wafer earn much, or where phrases are broken; every finding names its row and phrase.

    \b
    Example:
      wafervlm data lint runs/vqa
      wafervlm data lint rl_rows.json --formula optimised --json
    """
    from train.rubrics.formula import FORMULAS
    from train.rubrics.lint import Limits, lint as lint_rows
    from train.rubrics.table import render
    from wafervlm.errors import GateError

    options = {"formula": formula, "reference": reference, "attack": attack, "completions": completions}
    console.settings({"vqa": path, **options, "seed": seed})
    report = lint_rows(path, FORMULAS[formula], Limits(reference, attack), completions=completions, seed=seed)
    if as_json:
        console.json_line(report.to_dict())
    else:
        click.echo(render(report))
    if not report.passed:
        raise GateError(f"{path} is not a sound reward: {'; '.join(report.failures)}")
    console.say(f"{path} is a sound reward")
