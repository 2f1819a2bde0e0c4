"""The report as one HTML file that needs nothing from outside."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks import figures
from benchmarks.contenders import BUNDLE

# Of the pictures of disagreements in a set, how many are open to view; the rest are folded, not left out.
OPEN_PICTURES = 60
_TEMPLATES = Path(__file__).with_name("templates")


def write_report(
    report: Mapping[str, Any], pictures: Mapping[str, Sequence[Mapping[str, Any]]], path: Path
) -> None:
    """Write ``report`` with the ``pictures`` of disagreements (set name to entries) as HTML to ``path``."""
    path.write_text(render_report(report, pictures), encoding="utf-8")


def render_report(report: Mapping[str, Any], pictures: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "span": _span,
        "range": _range,
        "ms": _milliseconds,
        "short": _short,
        "mib": _mib,
    }
    template = environment.get_template("report.html.j2")
    drawn = {
        "accuracy": figures.accuracy_bars(report["models"]),
        "recall": figures.recall_dots(report["models"], report["task"]["labels"]),
        "reliability": figures.reliability_curve(
            _set_for_calibration(report)["models"]["bundle"]["calibration"]
        ),
        "latency": figures.latency_bars(report["latency_ms"]),
    }
    return template.render(
        report=report,
        figures={name: Markup(unique(svg, name)) for name, svg in drawn.items()},
        names=figures.NAMES,
        contenders=figures.CONTENDER_NAMES,
        rows=_latency_rows(report),
        stages={record.get("stage"): record for record in report["provenance"]},
        confusions=largest_confusions(report),
        base_answers=base_answers(report),
        pictures=pictures,
        opened=OPEN_PICTURES,
    )


def _set_for_calibration(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Confidence is a promise about the natural mix, so it is judged there where it can be."""
    return report["natural"] or report


def unique(svg: str, name: str) -> str:
    """``svg`` with its ids made its own: in one page the ids of several figures would clash."""
    found = re.sub(r'(\bid="|"#|url\(#)', lambda match: f"{match[1]}{name}-", svg)
    return found.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _latency_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    race, footprint = report["latency"], report["footprint"]
    return [
        {
            "name": name,
            "times": times,
            "about": race["about"][name],
            "ratios": race["ratios"][name],
            "agreement": race["agreement"][name],
            "footprint": footprint.get(name, {}),
            "ours": name == BUNDLE,
        }
        for name, times in report["latency_ms"].items()
    ]


def largest_confusions(
    report: Mapping[str, Any], most: int = 5, *, model: str = "bundle"
) -> list[dict[str, Any]]:
    """The most frequent wrong answers of ``model``."""
    labels, table = report["task"]["labels"], report["models"][model]["confusion"]
    pairs = [
        {"truth": labels[row], "answer": labels[column], "count": count, "of": sum(counts)}
        for row, counts in enumerate(table)
        for column, count in enumerate(counts)
        if row != column and count
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:most]


def base_answers(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """How often the base gives each answer, most frequent first; empty without a base."""
    base = report["models"].get("base")
    if base is None:
        return []
    given = [sum(column) for column in zip(*base["confusion"], strict=True)]
    return sorted(
        ((label, n) for label, n in zip(report["task"]["labels"], given, strict=True) if n),
        key=lambda p: -p[1],
    )


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def _span(interval: Mapping[str, float], digits: int = 1) -> str:
    return f"[{_percent(interval['low'], digits)}, {_percent(interval['high'], digits)}]"


def _range(figures: Mapping[str, float], name: str) -> dict[str, float]:
    """The interval of a figure whose limits stand beside it under its own name."""
    return {"low": figures[f"{name}_low"], "high": figures[f"{name}_high"]}


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _mib(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _short(digest: str) -> str:
    return digest[:12]
