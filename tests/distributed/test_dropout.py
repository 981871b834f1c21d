"""Ranks drop alike what they hold alike, and recomputation drops what the first pass dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.processes import run_worker
from tests.distributed.tiny import write_dataset

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("processes", [2, 4])
def test_dropout_over_ranks_and_recomputation(tmp_path: Path, processes: int):
    write_dataset(tmp_path / "data")
    arguments = [str(tmp_path / "data"), str(processes)]
    run_worker("tests.distributed.dropout_worker", processes, arguments, timeout_s=300.0)
