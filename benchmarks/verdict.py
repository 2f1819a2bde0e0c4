"""The verdict on a bundle: not worse than full precision by more than a margin that was stated beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scipy.stats import norm

from benchmarks.statistics import share_interval

POWER, LEVEL = 0.8, 0.05


def judge(paired: Mapping[str, Any], margin: float) -> dict[str, Any]:
    """Judge the ``paired`` comparison of a bundle with its parent against ``margin`` (a share, as 0.01).

    ``answer`` is "not worse" where the lower end of the accuracy difference lies above -margin, "worse" where
    its upper end lies below, else "undecided". The lower end is that over lots, or Wilson's where that is
    lower: resampling cannot see a loss that none of the maps shows. ``maps_needed`` is how many maps would
    give 80 % power at the discordance seen (or at its upper limit, where none was seen).
    """
    difference = paired["difference"]
    maps, lost = difference["wafers"], paired["only_reference_right"]
    wilson = difference["value"] - (share_interval(lost, maps)[1] - lost / maps)
    low = min(difference["low"], wilson)
    answer = "worse" if difference["high"] < -margin else "undecided"
    if low >= -margin:
        answer = "not worse"
    discordant = lost + paired["only_bundle_right"]
    share = discordant / maps if discordant else share_interval(0, maps)[1]
    return {
        "answer": answer,
        "margin": margin,
        "difference": difference["value"],
        "low": low,
        "high": difference["high"],
        "discordant": discordant,
        "maps": maps,
        "maps_needed": maps_needed(share, margin),
    }


def maps_needed(discordance: float, margin: float) -> int:
    """Maps for 80 % power to show a loss below ``margin`` at ``discordance``, the share of maps that only one
    of the two gets right: (z_0.95 + z_0.80)^2 discordance / margin^2 (Tango, 1998, equal accuracies)."""
    z = float(norm.ppf(1 - LEVEL) + norm.ppf(POWER))
    return math.ceil(z**2 * discordance / margin**2)
