"""What the station's check leaves of answers: contradicted claims are struck, and nothing else should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.assessment.cases import Cases
from benchmarks.statistics import ratio_by_lot
from wafervlm.claims import check, distinct
from wafervlm.geometry import measure_wafer
from wafervlm.words.checking import check_description
from wafervlm.words.description import Description


def struck_figures(texts: Sequence[str], cases: Cases) -> dict[str, Any]:
    """What is left of ``texts`` after the check against the dies, with no answer generated anew.

    ``contradictions_left`` are claims of the texts as checked that the wafer's ruler contradicts: on real
    maps none is to be left; on planted maps those that the station's geometry sees otherwise than the
    generator. ``kept`` is the share of all claims that are left, ``sound_kept`` that of the claims that the
    check did not contradict; ``empty`` are answers of which no claim is left though they made one.
    """
    before, after, sound, left, empty = [], [], [], 0, 0
    for text, case in zip(texts, cases.cases, strict=True):
        measured = measure_wafer(case.wafer)
        found = check_description(Description(text, "", (), "stop", 0), measured)
        claims, kept = distinct(text), distinct(found.text)
        before.append(len(claims))
        after.append(len(kept))
        sound.append(sum(not item.contradicted for item in check(claims, measured)))
        left += sum(item.contradicted for item in case.ruler.check(kept))
        empty += bool(claims) and not kept
    counts = np.array([after, before, sound], dtype=np.float64)
    every = ratio_by_lot(counts[0], counts[1], cases.lots)
    of_sound = ratio_by_lot(np.minimum(counts[0], counts[2]), counts[2], cases.lots)
    return {
        "contradictions_left": left,
        "claims_before": int(counts[1].sum()),
        "claims_after": int(counts[0].sum()),
        "kept": None if every is None else every.to_dict(),
        "sound_kept": None if of_sound is None else of_sound.to_dict(),
        "empty": empty,
    }
