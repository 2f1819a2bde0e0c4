"""What can be measured on the dies: zones, clock positions, clusters, rings, lines, repeats.

``measure`` takes a die grid, ``measure_wafer`` a wafer map that may know its orientation; both need scipy,
which comes with the extra [words]. What is measured, and in which units, is said in ``types``.
"""

from __future__ import annotations

from wafervlm.geometry.measuring import measure, measure_wafer
from wafervlm.geometry.shares import measure_shares
from wafervlm.geometry.types import (
    HOURS,
    PATTERNS,
    QUADRANTS,
    ZONE_RADII,
    ZONES,
    Cluster,
    Frame,
    Geometry,
    Line,
    Pattern,
    Repeat,
    Ring,
    Shares,
    Zone,
)

__all__ = [
    "HOURS",
    "PATTERNS",
    "QUADRANTS",
    "ZONES",
    "ZONE_RADII",
    "Cluster",
    "Frame",
    "Geometry",
    "Line",
    "Pattern",
    "Repeat",
    "Ring",
    "Shares",
    "Zone",
    "measure",
    "measure_shares",
    "measure_wafer",
]
