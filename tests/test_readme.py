"""What README shows is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import wafervlm
from train.nano.config import NANO

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "train" / "README.md").read_text(encoding="utf-8")


def test_the_printed_answer_is_the_embedded_models() -> None:
    shown = re.search(r"<Prediction 'map' (\S+) (\d\.\d+) in \S+ ms>", README)
    assert shown
    with wafervlm.load(threads=1) as model:
        answer = model.predict(ROOT / "benchmarks" / "examples" / "map.npy")
    assert answer.label == shown[1]
    # Bytes round elsewhere on other processors.
    assert answer.confidence == pytest.approx(float(shown[2]), abs=0.02)


def test_the_size_of_nano_is_the_configurations() -> None:
    assert f"{NANO.image} x {NANO.image} pixels" in TRAINING
    assert f"{(NANO.image // NANO.patch // 2) ** 2} image tokens" in TRAINING
    assert f"-s {NANO.image} {NANO.image}" in TRAINING


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "benchmarks/README.md", "train/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert links
    for link in links:
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
