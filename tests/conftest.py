"""What every test shares: the repository root, and one queue for the tests that start processes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that start processes on one xdist worker: two torchrun launches at a time starve each other."""
    for item in items:
        if item.get_closest_marker("dist") or item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parent.parent
