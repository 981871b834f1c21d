"""A bad loss or gradient on one of two ranks: both skip the update, bit for bit, in every layout, and go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.processes import run_worker
from tests.distributed.tiny import write_dataset

pytestmark = pytest.mark.dist


def test_all_ranks_skip_what_is_bad_on_one(tmp_path: Path):
    write_dataset(tmp_path / "data")
    run_worker("tests.distributed.skipped_worker", 2, [str(tmp_path / "data")], timeout_s=300.0)
