"""What every test shares: the repository root, and which tests and which examples run when nothing is asked for."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# the same examples in every run, without time limits; `--hypothesis-profile=default` looks for others
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave `whole` out unless `-m` names it."""
    if "whole" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("whole")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
