"""The question that a three-part description answers."""

from __future__ import annotations

DESCRIBE_QUESTION = (
    "Describe this wafer map in three parts: 1. spatial distribution, 2. morphology, 3. root-cause "
    "candidates. Name candidates only, no definite cause."
)
