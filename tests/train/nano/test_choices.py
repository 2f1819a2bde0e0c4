"""What is said of a wafer, as choices: against the claims that descriptions make, and the loss by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.wafervlm.claims.drawing import DRAWN, X, Y, wafer
from train.nano.choices import CHOICES, wafer_choices
from train.nano.config import TINY
from train.nano.sight import Sight, features, targets
from train.synthetic import scene
from wafervlm.claims import Claim, Verdict, check
from wafervlm.geometry import PATTERNS, ZONES, measure
from wafervlm.wafermap import DieGrid

NAMES = list(CHOICES)


def chosen(dies: DieGrid) -> dict[str, int]:
    """The choices by name."""
    return dict(zip(NAMES, wafer_choices(dies).tolist(), strict=True))


@pytest.mark.parametrize(("x", "y", "hour"), [(0.0, -0.8, 12), (0.8, 0.0, 3), (-0.4, 0.69, 7)])
def test_a_cluster_is_where_it_was_put(x: float, y: float, hour: int) -> None:
    found = chosen(wafer(np.hypot(X - x, Y - y) < 0.15))
    assert (found["clock"], found["zone"], found["clusters"]) == (hour, 1 + ZONES.index("edge"), 1)
    assert PATTERNS[found["pattern"]] == "cluster" and found["second"] == found["ring"] == found["line"] == 0


def test_rings_and_nothing_have_no_place() -> None:
    found = chosen(DRAWN["empty"])
    assert found["size"] == found["clock"] == found["zone"] == 0
    found = chosen(DRAWN["ring"])
    assert (found["clock"], found["gap"], found["ring"]) == (0, 0, 3) and found["radius"] > 0


def test_what_is_chosen_is_what_a_description_may_claim() -> None:
    rng = np.random.default_rng(3)
    placed = 0
    for _ in range(60):
        dies = scene(rng)
        found, geometry = chosen(dies), measure(dies)
        claims = [Claim("clusters", found["clusters"])]
        if found["clock"]:
            claims.append(Claim("clock", found["clock"]))
        if found["zone"]:
            zone = ZONES[found["zone"] - 1]
            claims.append(Claim("zone", zone if geometry.zone_stands_out else ("pattern", zone)))
        if found["second"]:
            claims.append(Claim("clock", ("second cluster", found["second"])))
        verdicts = [item.verdict for item in check(claims, geometry)]
        assert Verdict.CONTRADICTED not in verdicts[1:]
        placed += bool(found["clock"])
        assert all(0 <= found[name] < count for name, (count, _) in CHOICES.items())
    assert placed > 10


@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_of_the_choices() -> None:
    rng = np.random.default_rng(4)
    grids = [scene(rng) for _ in range(3)]
    torch.manual_seed(0)
    heads = Sight(TINY, grids, choices=0.5)
    tokens = (TINY.image // TINY.patch // 2) ** 2
    parts = [torch.randn(3 * tokens, TINY.text_width) for _ in range(1 + len(TINY.deepstack))]
    seen = SimpleNamespace(pooler_output=parts[0], deepstack_features=parts[1:])
    local, whole = targets(grids, TINY)
    wanted = torch.from_numpy(np.stack([wafer_choices(grid) for grid in grids]))
    without, loss = heads(features(seen), local, whole), heads(features(seen), local, whole, wanted)
    mean = torch.cat(parts, dim=-1).view(3, tokens, -1).mean(dim=1)
    scores = mean @ heads.chosen.weight.T + heads.chosen.bias
    total, start = 0.0, 0
    for place, (count, _) in enumerate(CHOICES.values()):
        logs = torch.log_softmax(scores[:, start : start + count], dim=-1)
        total -= float(logs[torch.arange(3), wanted[:, place]].mean())
        start += count
    assert loss.item() - without.item() == pytest.approx(0.5 * total / len(CHOICES), rel=1e-4)
