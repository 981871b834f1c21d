"""Tensor-parallel ranks drop alike what they hold alike, and recomputation drops what the first pass dropped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.processes import run_worker
from tests.distributed.tiny import write_dataset

pytestmark = pytest.mark.dist


def test_dropout_over_ranks_and_recomputation(tmp_path: Path):
    write_dataset(tmp_path / "data")
    run_worker("tests.distributed.dropout_worker", 2, [str(tmp_path / "data")], timeout_s=300.0)
