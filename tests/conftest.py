"""What every test shares: the repository root, and one queue for the tests that start processes."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests that start processes on one xdist worker: two launches at a time starve each other.

    On collection, because xdist reads the groups before `pytest_collection_modifyitems` gets here.
    """
    if item.get_closest_marker("dist") or item.get_closest_marker("e2e"):
        item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parent.parent
