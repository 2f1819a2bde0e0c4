"""Deadlines: until when a call may take."""

from __future__ import annotations

import math
import time

from wafervlm.errors import UsageError


def deadline_of(timeout: float | None) -> float | None:
    """The time.monotonic() at which a call allowed ``timeout`` seconds ends, None for no end. Raises
    UsageError."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise UsageError(f"timeout is {timeout!r}; it must be a number of seconds greater than 0, or None")
    return time.monotonic() + timeout
