"""Context parallelism between real processes: the collectives, and what is summed over the ranks of a sequence."""

from __future__ import annotations

import pytest

from tests.distributed.processes import run_worker

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("processes", [2, 4])
def test_ranks_that_share_sequences_agree_with_one_that_holds_them(processes: int):
    run_worker("tests.distributed.context_worker", processes, [str(processes)])
