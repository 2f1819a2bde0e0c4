"""The report: the artefacts' own figures, wafers that are what they are said to be, nothing invented."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.assessment.cases import planted_cases
from benchmarks.cookbook.artefacts import KINDS, choose, places_of
from benchmarks.cookbook.blocks import Example, Gallery, Page, Sheet, Step
from benchmarks.cookbook.drawing import write_markdown
from benchmarks.cookbook.examples import Answers, galleries
from benchmarks.cookbook.lines import Places
from benchmarks.cookbook.material import gather
from benchmarks.cookbook.reading import read_json
from benchmarks.cookbook.stage import ReportConfig, make_page, write_report
from tests.benchmarks.cookbook.conftest import Runs
from train.dataset import Sample, dataset_task, read_split
from train.synthetic import wafers
from wafervlm.cli import main
from wafervlm.errors import FileFormatError, UsageError
from wafervlm.loading import load
from wafervlm.render import RenderSpec, render
from wafervlm.task import WAFER_DEFECTS
from wafervlm.wafermap import WaferMap

STEPS = (
    *("Benchmark selection", "Zero-shot evaluation", "Problem analysis", "Data curation"),
    *("Post-training", "Re-evaluation"),
)
VOID = {"meta", "img", "br", "path", "use", "rect"}


class Nested(HTMLParser):
    """Fails where tags do not nest; keeps what images show and where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.sources += [named["src"] or ""] if "src" in named else []
        self.links += [(named["href"] or "")[1:]] if tag == "a" else []
        self.ids += [name] if (name := named.get("id")) else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cookbook") / "report"
    named = {**runs.named, "base": (runs.base,)}
    write_report(ReportConfig(runs.line, named), out)
    return out


@pytest.fixture(scope="module")
def markdown(written: Path) -> str:
    return (written / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(written: Path) -> str:
    return (written / "report.html").read_text(encoding="utf-8")


def test_six_steps_in_both_formats(html: str, markdown: str) -> None:
    assert re.findall(r"^## \d (.*)$", markdown, re.MULTILINE) == list(STEPS)
    assert re.findall(r'<h2 id="step-\d">\d (.*)</h2>', html) == list(STEPS)
    titles = re.findall(r"^### (.*)$", markdown, re.MULTILINE)
    assert len(titles) > 25
    page = unescape(html)
    assert not [title for title in titles if title.replace("\\", "") not in page]


def test_figures_are_those_of_the_artefacts(runs: Runs, markdown: str) -> None:
    report = json.loads((runs.line / "benchmark" / "report.json").read_text())
    for name in ("base", "reference", "bundle"):
        found = report["models"][name]["accuracy"]
        assert (
            f"{100 * found['value']:.1f} \\[{100 * found['low']:.1f}, {100 * found['high']:.1f}\\]"
            in markdown
        )
    parity = json.loads((runs.line / "calibrate" / "provenance.json").read_text())["parity"]
    assert f"| label agreement | {parity['label_agreement']:.4g} |" in markdown
    reward = json.loads((runs.beside / "rl" / "provenance.json").read_text())["parity"]["tune_reward"]
    assert f"| {reward:.4g} |" in markdown
    words = json.loads((runs.beside / "words" / "words.json").read_text())
    tokens = [f"{one['real']['tokens_per_answer']:.0f}" for one in words["subjects"].values()]
    assert f"| tokens an answer | {' | '.join(tokens)} |" in markdown
    counts = json.loads((runs.beside / "vqa" / "counts.json").read_text())
    assert f"| wafers | {' | '.join(str(one['wafers']) for one in counts.values())} |" in markdown


def test_html_is_whole_and_needs_nothing_from_outside(html: str) -> None:
    page = Nested()
    page.feed(html)
    assert not page.open
    assert len(page.sources) > 10
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert set(page.links) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_table_and_figure_names_its_command(html: str, markdown: str) -> None:
    headings = re.findall(r"<h3>(.*?)</h3>", html, re.DOTALL)
    bare = [heading for heading in headings if "by command" not in heading]
    # The bundle was judged through its own manifest; the artefacts are listed by folder and digest.
    assert [re.sub(r"\s+", " ", heading).strip() for heading in bare] == ["Artefacts"]
    shown = {int(n) for n in re.findall(r"^(\d+)  wafervlm ", markdown, re.MULTILINE)}
    assert {int(n) for n in re.findall(r"By command (\d+)", markdown)} == shown


def test_pictures_of_the_markdown_lie_beside_it(written: Path, markdown: str) -> None:
    named = re.findall(r"!\[[^\n]*?\]\((pictures/[\w.-]+)\)", markdown)
    assert set(named) == {f"pictures/{path.name}" for path in (written / "pictures").iterdir()}
    wafer = next(name for name in named if "wafer-" in name)
    with Image.open(written / wafer) as shown:
        assert shown.size == (144, 144)


def test_pictures_are_the_wafers_that_were_judged(runs: Runs, html: str) -> None:
    palette = dataset_task(runs.line / "data").render.palette
    dies_of = {colour: dies for dies, colour in enumerate(palette)}
    shown = set()
    for source in re.findall(r'<div class="wafer"><img src="data:image/png;base64,([^"]+)"', html):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"))
        dies = np.array([[dies_of[tuple(pixel)] for pixel in row] for row in pixels.tolist()], np.uint8)
        shown.add(WaferMap(dies).digest)
    judged = {sample.wafer.digest for sample in read_split(runs.line / "data", "test")}
    # Those beyond are the planted wafers that words are about.
    assert len(shown & judged) >= 9
    assert shown - judged <= {case.wafer.digest for case in planted_cases(11, 0).cases}


def test_groups_are_as_the_scores_say() -> None:
    labels = [WAFER_DEFECTS.labels[i % 9] for i in range(90)]
    samples = [Sample(wafer, label) for wafer, label in zip(wafers(labels, seed=4), labels, strict=True)]
    chance = np.random.default_rng(2)
    models = {name: chance.dirichlet(np.full(9, 0.3), 90) for name in ("base", "bundle")}
    for values in models.values():
        values[:30] = np.eye(9)[[i % 9 for i in range(30)]]
    answers = Answers(samples, WAFER_DEFECTS.labels, models)
    shown = [block for block in galleries(answers, RenderSpec(64, 64), 1) if isinstance(block, Gallery)]
    assert {block.title for block in shown} == {
        "Wrong before, right after",
        "Wrong after as before",
        "Right before, wrong after",
    }
    place = {sample.wafer.digest: i for i, sample in enumerate(samples)}
    for block in shown:
        for example in block.examples:
            assert example.wafer is not None
            at = place[example.wafer.digest]
            tops = [WAFER_DEFECTS.labels[models[name][at].argmax()] for name in ("base", "bundle")]
            assert [said.answer.split()[0] for said in example.said] == tops
            rights = [said.right for said in example.said]
            assert rights == [top == labels[at] for top in tops]
            assert rights == [block.title.startswith("Right before"), block.title.endswith("right after")]
        classes = [example.truth for example in block.examples]
        assert len(set(classes)) == len(classes) or len(set(classes)) < 9


def test_what_is_not_there_is_said_and_not_made_up(runs: Runs, tmp_path: Path) -> None:
    write_report(ReportConfig(None, {"dataset": (runs.line / "data",)}), tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text()
    for kind in ("benchmark", "words", "adapter", "rl", "merged", "gptq", "bundle", "cleaned", "vqa"):
        assert f"--{kind} names it" in page.replace("\\", ""), kind
    absent = [KINDS[kind].title for kind in KINDS if kind != "dataset"]
    assert f"Not here: {', '.join(absent)}." in page
    assert "### Maps of" in page
    assert "accuracy" not in page.split("## 4")[1].split("## What")[0].replace("Accuracy before", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "cannot be read as JSON"),
        (b'{"passed": tr', "is no whole JSON"),
        (b"{}", "lacks passed, failures, dimensions"),
        (b"[1]", "lacks passed"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "lint.json"
    path.write_bytes(text)
    with pytest.raises(FileFormatError, match=f"lint.json {message}"):
        read_json(path, ("passed", "failures", "dimensions"))


def test_a_bundle_answers_where_no_answers_are_kept(runs: Runs, tmp_path: Path) -> None:
    named = {"dataset": (runs.line / "data",), "bundle": (runs.line / "export",)}
    chosen = choose(None, named)
    every = [one for group in chosen.values() for one in group]
    found = gather(chosen, Places(places_of(every, ())), predict=True)
    found.command = "wafervlm report --bundle here"
    page = make_page(found)
    shown = [block for block in page.steps[5].blocks if isinstance(block, Gallery)]
    with load(runs.line / "export", threads=1) as model:
        for block in shown:
            for example in block.examples:
                assert example.wafer is not None
                said, answer = example.said[-1], model.predict(example.wafer)
                assert said.answer.split()[0] == answer.label
                assert said.right == (answer.label == example.truth)
    assert [page.commands[block.source - 1].line for block in shown if block.source] == [found.command] * len(
        shown
    )
    assert shown


def test_answers_that_stages_kept_are_shown_without_a_benchmark(runs: Runs) -> None:
    named = {
        "dataset": (runs.line / "data",),
        "predictions": (runs.line / "predict",),
        "zero_shot": (runs.line / "zero-shot",),
    }
    chosen = choose(None, named)
    found = gather(chosen, Places(places_of([one for group in chosen.values() for one in group], ())))
    blocks = make_page(found).steps[5].blocks
    lines = (runs.line / "predict" / "predictions.jsonl").read_text().splitlines()
    said = {(one := json.loads(line))["id"]: one for line in lines}
    accuracy = json.loads((runs.line / "zero-shot" / "figures.json").read_text())["accuracy"]["value"]
    shown = [example for block in blocks if isinstance(block, Gallery) for example in block.examples]
    for example in shown:
        assert example.wafer is not None
        assert example.said[1].answer.split()[0] == said[example.wafer.id]["label"]
        assert example.truth == said[example.wafer.id]["truth"]
    assert len(shown) >= 9
    (changes,) = [block.table.rows for block in blocks if isinstance(block, Sheet)]
    assert sum(int(cell) for cell in changes[0][1:]) == round(accuracy * len(said))


def test_other_maps_are_not_passed_off_as_those_judged(runs: Runs, tmp_path: Path) -> None:
    line = tmp_path / "benchmark"
    shutil.copytree(runs.line / "benchmark", line)
    report = json.loads((line / "report.json").read_text())
    report["maps"]["digest"] = hashlib.sha256(b"others").hexdigest()
    (line / "report.json").write_text(json.dumps(report))
    named = {"benchmark": (line,), "dataset": (runs.line / "data",)}
    write_report(ReportConfig(None, named), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "holds other maps than those that were judged on" in page
    assert 'class="wafer"' not in page


def test_what_models_said_cannot_break_the_page(runs: Runs, tmp_path: Path) -> None:
    words = tmp_path / "words"
    shutil.copytree(runs.beside / "words", words)
    lines = [json.loads(line) for line in (words / "answers.jsonl").read_text().splitlines()]
    claim = {"kind": "zone", "value": "edge", "negated": False, "text": "at the *edge*", "why": "it is not"}
    for line in lines:
        line["text"] = "<script>alert(1)</script> a | b\nc"
        line["claims"] = [{**claim, "verdict": "contradicted"}]
    (words / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    named = {"words": (words,), "dataset": (runs.line / "data",)}
    write_report(ReportConfig(None, named), tmp_path / "out")
    html, page = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "\\<script\\>alert(1)\\</script\\> a \\| b<br>c" in page
    assert "contradicted: “at the \\*edge\\*” (it is not)" in page
    assert f"{len(lines) // 2} of {len(lines) // 2} descriptions of rl hold a claim" in page


def test_a_report_is_left_unless_it_is_to_be_replaced(runs: Runs, tmp_path: Path) -> None:
    out, one = tmp_path / "out", {"dataset": (runs.line / "data",)}
    assert write_report(ReportConfig(None, one), out)[1]
    assert not write_report(ReportConfig(None, one), out)[1]
    more: dict[str, Any] = {**one, "vqa": runs.named["vqa"]}
    with pytest.raises(UsageError, match="holds a report of other artefacts"):
        write_report(ReportConfig(None, more), out)
    assert write_report(ReportConfig(None, more), out, replace=True)[1]
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("")
    with pytest.raises(UsageError, match="was not written by this command"):
        write_report(ReportConfig(None, one), other, replace=True)
    assert (other / "precious").exists()
    with pytest.raises(UsageError, match="name a folder of runs"):
        ReportConfig(None)


def test_the_command(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["report", str(runs.line), "-o", str(out), "--template", "cookbook", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == str(out / "report.html")
    assert found["adapter"] == [str(runs.line / "train")]
    assert main(["report", str(runs.line), "-o", str(out)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert main(["report", "-o", str(tmp_path / "none")]) == 2
    assert "name a folder of runs" in capsys.readouterr().err


def test_a_picture_in_the_markdown_is_the_renderers(tmp_path: Path) -> None:
    wafer, spec = wafers(["Donut"], seed=1)[0], RenderSpec(64, 64)
    gallery = Gallery("One", "", [Example(wafer, "Donut", "", [])], spec)
    write_markdown(Page("", "", (), [Step("", [gallery])], (), (), ()), tmp_path / "page.md")
    (file,) = (tmp_path / "pictures").iterdir()
    with Image.open(file) as shown:
        assert np.array_equal(np.asarray(shown.convert("RGB")), render(wafer, RenderSpec(144, 144)))
