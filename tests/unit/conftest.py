"""What the unit tests share: no deadlines, and a world of one process (ten milliseconds) for each test that asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from megatron_ext.parallel.world import World

# a slow machine is no failure
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture
def world() -> Iterator[World]:
    """The groups of megatron-core for one CPU process."""
    from megatron_ext.parallel.world import start_world
    from megatron_ext.platform.cpu import CpuPlatform
    from tests.unit.tiny import tiny_run

    with start_world(tiny_run(), CpuPlatform()) as world:
        yield world
