"""How surprising a cluster the background makes by chance."""

from __future__ import annotations


def least_surprise(background: float, dies: int) -> float:
    """The sum of its dies' surprise that a cluster must have, so that about one wafer of ``dies`` dies in
    fifty has such a one by chance where a share ``background`` of them fails independently.

    A fit to simulated wafers of 284, 829, 1,916 and 5,008 dies with backgrounds of 0.5 to 60 percent.
    """
    return float((7 + 95 * background) * (dies / 800) ** 0.25)
