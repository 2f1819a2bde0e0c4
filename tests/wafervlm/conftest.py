"""Fixtures of the station's tests: a small real bundle, and wafers to ask it about."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.wafervlm.toy import Head, make_graph, make_head, make_wafers, write_bundle
from wafervlm.wafermap import WaferMap


@pytest.fixture(scope="session")
def head() -> Head:
    return make_head()


@pytest.fixture(scope="session")
def shared_toy_bundle(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    """A whole bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("toy") / "bundle", make_graph(head), head)


@pytest.fixture
def toy_bundle(shared_toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the whole bundle, to be damaged."""
    return Path(shutil.copytree(shared_toy_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def wafers() -> list[WaferMap]:
    """Forty distinct wafers."""
    return make_wafers(40)


@pytest.fixture
def bundle_of(tmp_path: Path, head: Head) -> Callable[..., Path]:
    """Write a bundle whose graph is made with the given arguments of ``make_graph``."""

    def make(manifest: dict[str, Any] | None = None, **graph: Any) -> Path:
        return write_bundle(tmp_path / "made", make_graph(head, **graph), head, **(manifest or {}))

    return make
