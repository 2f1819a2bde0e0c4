"""The page: pictures that are the wafers, every disagreement, names that cannot break it."""

from __future__ import annotations

import base64
import io
import re
from copy import deepcopy
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from benchmarks.pictures import disagreements, picture
from benchmarks.report import OPEN_PICTURES, render_report
from tests.benchmarks.conftest import Ran
from train.dataset import Sample
from train.synthetic import wafers
from wafervlm.render import render
from wafervlm.task import Task
from wafervlm.wafermap import WaferMap


@pytest.fixture
def report(ran: Ran) -> dict[str, Any]:
    return deepcopy(ran.outcome.report)


def test_a_picture_is_the_wafer(synthetic_wafers: list[tuple[WaferMap, str]], tiny_task: Task) -> None:
    wafer, _ = synthetic_wafers[3]
    kind, data = picture(wafer, tiny_task.render).split(",")
    assert kind == "data:image/png;base64"
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    palette = np.array(tiny_task.render.palette, dtype=np.uint8)
    assert np.array_equal(shown, palette[wafer.dies])
    # Enlarged without blur it is what the model sees.
    enlarged = np.asarray(Image.fromarray(shown).resize((64, 64), Image.Resampling.NEAREST))
    assert (enlarged == render(wafer, tiny_task.render)).mean() > 0.95


def test_every_disagreement_is_shown_and_the_surest_are_open(report: dict[str, Any], tiny_task: Task) -> None:
    labels = [tiny_task.labels[i % 9] for i in range(90)]
    samples = [Sample(wafer, label) for wafer, label in zip(wafers(labels, seed=4), labels, strict=True)]
    chance = np.random.default_rng(1)
    ours, theirs = (np.log(chance.dirichlet(np.full(9, 0.3), 90) + 1e-9) for _ in range(2))
    entries = disagreements(samples, tiny_task, ours, theirs, 1.0)
    differ = ours.argmax(axis=1) != theirs.argmax(axis=1)
    assert {entry["id"] for entry in entries} == {samples[i].wafer.id for i in np.flatnonzero(differ)}
    first = next(s for s in range(90) if samples[s].wafer.id == entries[0]["id"])
    assert entries[0]["bundle"]["label"] == tiny_task.labels[ours[first].argmax()]
    assert entries[0]["reference"]["right"] == (tiny_task.labels[theirs[first].argmax()] == labels[first])
    report["comparison"]["disagreements"] = list(range(len(entries)))
    page = render_report(report, {"maps": entries})
    assert len(entries) > OPEN_PICTURES
    assert all(entry["picture"] in page for entry in entries)
    assert page.count('class="wafer"') == len(entries)
    opened, folded = page.split(f"<details><summary>The other {len(entries) - OPEN_PICTURES}</summary>")
    assert opened.count('class="wafer"') == OPEN_PICTURES
    assert folded.split("</details>")[0].count('class="wafer"') == len(entries) - OPEN_PICTURES
    assert f"first the {OPEN_PICTURES} on which both are surest" in page
    few = {"maps": entries[:7]}
    report["comparison"]["disagreements"] = list(range(7))
    page = render_report(report, few)
    assert page.count('class="wafer"') == 7
    assert "The other" not in page


def test_an_interval_stands_beside_its_figure(report: dict[str, Any]) -> None:
    model, kl = report["models"]["bundle"], report["comparison"]["kl"]
    model |= {"mean_class_recall": 0.5, "mean_class_recall_low": 0.412, "mean_class_recall_high": 0.613}
    model["calibration"] |= {"ece": 0.03, "ece_low": 0.0123, "ece_high": 0.0534}
    kl |= {"mean": 0.002, "mean_low": 0.0013, "mean_high": 0.0037}
    ratios = report["latency"]["ratios"]["reference_generate"]
    ratios |= {"call": 12.0, "call_low": 11.25, "call_high": 13.75}
    page = render_report(report, {"maps": []})
    for shown in ("[41.2, 61.3]", "[1.2, 5.3]", "[0.0013, 0.0037]", "[11.25, 13.75]"):
        assert shown in page


def test_names_cannot_break_the_page(report: dict[str, Any]) -> None:
    report["bundle"]["name"] = "<script>alert(1)</script>"
    page = render_report(report, {"maps": []})
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_figures_are_well_formed_and_the_same_each_time(report: dict[str, Any]) -> None:
    page = render_report(report, {"maps": []})
    drawings = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert [ET.fromstring(svg).tag for svg in drawings] == ["{http://www.w3.org/2000/svg}svg"] * 4
    assert page == render_report(report, {"maps": []})


def test_what_was_not_measured_is_said(report: dict[str, Any]) -> None:
    del report["models"]["base"]
    del report["latency_ms"]["openvino"]
    report["latency"]["absent"] = {"openvino": "openvino is not installed"}
    report["provenance"], report["reference_is_parent"] = [], False
    report["quick"] = True
    page = render_report(report, {"maps": []})
    for told in ("no base checkpoint was given", "left out: openvino is not installed", "A quick look"):
        assert told in page
    assert "does not name this reference checkpoint" in page
