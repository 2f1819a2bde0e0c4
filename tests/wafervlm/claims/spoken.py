"""Every kind of claim with every value, for tests that draw them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from wafervlm.claims import KINDS, Claim
from wafervlm.claims.claim import CLUSTERS

HOURS, PERCENT, ZONES = st.integers(1, 12), st.integers(2, 100), st.sampled_from(["center", "middle", "edge"])


def about(*subjects: str) -> Any:
    """With one of ``subjects`` or none named before a value."""
    return lambda values: st.tuples(st.sampled_from([None, *subjects]), values).map(
        lambda pair: (
            pair[1] if pair[0] is None else (pair[0], *pair[1]) if isinstance(pair[1], tuple) else pair
        )
    )


PLACED = about(*CLUSTERS, "cluster", "line")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "share": st.one_of(
        st.integers(0, 100),
        st.integers(1, 99).map(lambda n: n + 0.5),
        st.tuples(ZONES, st.integers(0, 100)),
        st.tuples(st.sampled_from(["above", "below"]), PERCENT),
    ),
    "count": st.integers(1, 9999),
    "zone": about(*CLUSTERS, "cluster", "line", "ring", "pattern")(ZONES),
    "clear": ZONES,
    "clock": about(*CLUSTERS, "cluster", "line", "gap")(HOURS),
    "span": about(*CLUSTERS, "cluster")(st.tuples(HOURS, HOURS)),
    "quadrant": PLACED(st.sampled_from(["upper left", "upper right", "lower left", "lower right"])),
    "side": PLACED(st.sampled_from(["top", "right", "bottom", "left"])),
    "pattern": st.just("any"),
    "ring": st.one_of(
        st.sampled_from(["any", "closed", "open", "arc"]),
        st.tuples(st.sampled_from(["any", "closed", "open"]), PERCENT),
    ),
    "line": st.sampled_from(
        ["any", "horizontal", "vertical", "rising", "falling", "diagonal", "straight", "curved"]
    ),
    "clusters": st.sampled_from([0, 1, 2, 3, "any", "several"]),
    "size": about("second cluster", "third cluster", "cluster")(st.integers(1, 9999)),
    "extent": PLACED(PERCENT),
    "density": about("second cluster", "third cluster")(st.sampled_from(["dense", "sparse"])),
    "scatter": st.sampled_from(["alone", "spread"]),
    "background": st.sampled_from(["few", "some", "many"]),
    "repeat": st.one_of(st.just("any"), st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any)),
    "symmetry": st.sampled_from(["any", "rotational", "mirror"]),
}


@st.composite
def statements(draw: st.DrawFn) -> Claim:
    """Any claim that can be said; "not a cluster" is said as no cluster."""
    kind = draw(st.sampled_from(KINDS))
    value = draw(VALUES[kind])
    no_cluster = kind == "clusters" and value in (0, "any", "several")
    return Claim(kind, value, negated=draw(st.booleans()) and not no_cluster)
