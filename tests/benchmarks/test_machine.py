"""What a report says of the machine, and what it must not."""

from __future__ import annotations

import json
import platform

import numpy as np

from benchmarks.machine import describe_machine


def test_the_machine_without_its_kernel() -> None:
    found = describe_machine(threads=3)
    assert found["threads"] == 3
    assert found["system"] == f"{platform.system()} {platform.machine()}"
    assert found["versions"]["numpy"] == np.__version__
    assert platform.release() not in json.dumps(found)
