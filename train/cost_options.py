"""The option ``--dry-run``, and what a command prints for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wafervlm import console

if TYPE_CHECKING:
    from train.costs import Cost

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Say what memory, disk and time it will take here, and stop."
)
"""Decorator that adds ``--dry-run`` to a command, as its argument ``dry_run``."""


def show_cost(cost: Cost, out: Path, as_json: bool) -> None:
    """Print ``cost`` for this machine, measured now; say where memory or disk will not do."""
    from train.costs import measure_speed

    figures = cost.figures(out, measure_speed())
    for what, has in (("memory", "available"), ("disk", "free")):
        needed, there = figures[f"{what}_gb"], figures[f"{what}_{has}_gb"]
        if float(str(needed)) > float(str(there)):
            console.say(f"warning: {needed} GB of {what} are needed and {there} GB are {has} here")
    console.result(figures, as_json)
