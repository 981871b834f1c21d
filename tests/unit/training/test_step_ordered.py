"""With --deterministic-data-parallel the reported loss is added micro-batch after micro-batch of the global batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_ext.parallel.grid import Coordinates, Grid
from megatron_ext.parallel.world import World
from megatron_ext.training import step as step_module
from megatron_ext.training.step import sum_reports


def test_ordered_losses_are_those_of_the_global_batch(world: World):
    pairs = [[1e17, 1.0], [-1e17, 2.0], [3.0, 4.0]]
    reports = [{"loss and tokens": torch.tensor(pair, dtype=torch.float64)} for pair in pairs]
    assert sum_reports(reports, world, ordered=True) == (3.0, 7.0, None, 0.0)
    for report in reports:
        report["squared logits"] = torch.tensor(0.5)
    assert sum_reports(reports, world, ordered=True) == (3.0, 7.0, None, 1.5)
    assert sum_reports([], world, ordered=True) == (0.0, 0.0, None, 0.0)


@pytest.mark.parametrize("rank", [0, 1])
def test_ordered_losses_of_two_ranks_are_added_as_one_rank_would(rank: int, monkeypatch: pytest.MonkeyPatch):
    """Sums of each rank's own first would lose the 3; the last rank adds nothing to what the first one knows."""
    shares = [[[3.0, 1.0], [1e17, 1.0]], [[-1e17, 1.0], [3.0, 1.0]]]
    reports = [{"loss and tokens": torch.tensor(pair, dtype=torch.float64)} for pair in shares[rank]]

    def all_gather(every: torch.Tensor, mine: torch.Tensor, group: object) -> None:
        every[:, :2] = torch.tensor(shares, dtype=torch.float64).view(4, 2)
        every[:, 2] = 0.0
        assert mine.equal(every[2 * rank : 2 * rank + 2])

    monkeypatch.setattr(step_module.dist, "all_gather_into_tensor", all_gather)
    monkeypatch.setattr(step_module.dist, "all_reduce", lambda *_, **__: None)
    monkeypatch.setattr(step_module.parallel_state, "get_data_parallel_group", lambda **_: None)
    world = SimpleNamespace(
        at=Coordinates(0, 0, dp_rank=rank, pp_rank=0), grid=Grid(1, 1, dp_size=2), device=torch.device("cpu")
    )
    in_order = 3.0 + 1e17 - 1e17 + 3.0
    expected = ((in_order, 4.0), (0.0, 0.0))[rank]
    assert sum_reports(reports, world, ordered=True)[:2] == expected
    assert in_order != (3.0 + 1e17) + (-1e17 + 3.0)
