"""What a step tells of each source is the same whole number for every cut of its batch."""

from __future__ import annotations

import functools
import math
import operator

import pytest
import torch

from megatron_ext.config import RunConfig
from megatron_ext.data.views import View
from megatron_ext.parallel.world import World
from megatron_ext.training.forward import sum_losses
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.source_losses import LOSS_UNIT, SourceTotals
from megatron_ext.training.step import forward_backward, sum_reports, train_step
from tests.unit.tiny import TokenView, tiny_components, tiny_run
from tests.unit.training.blends import easy_and_hard


def steps(run: RunConfig, world: World, view: View, count: int) -> list[StepResult]:
    parts, state, results = tiny_components(run, world, train=view), TrainState(), []
    with open_readers(parts, view, 0, run.global_batch_size_at) as readers:
        for _ in range(count):
            results.append(train_step(parts, state, readers))
            state.advance(results[-1])
    return results


def reports_of(losses: torch.Tensor, mask: torch.Tensor, sources: torch.Tensor, size: int) -> list[dict]:
    """Reports of the micro-batches of `size` samples that a batch is cut into."""
    cuts = zip(losses.split(size), mask.split(size), sources.split(size), strict=True)
    return [sum_losses(some_mask, some, origin)[2] for some, some_mask, origin in cuts]


def test_totals_per_source_are_equal_for_every_cut_into_ranks_and_micro_batches(world: World):
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(24, 50, generator=generator) * 20
    mask = (torch.rand(24, 50, generator=generator) > 0.3).float()
    sources = torch.randint(0, 4, (24,), generator=generator)
    whole = sum_reports(reports_of(losses, mask, sources, 24), world, 5).sources
    for size in (1, 2, 3, 8):
        assert sum_reports(reports_of(losses, mask, sources, size)[::-1], world, 5).sources == whole
    for ranks in (2, 3, 4):
        parts = [
            sum_reports(reports_of(losses[rank::ranks], mask[rank::ranks], sources[rank::ranks], 2), world, 5).sources
            for rank in range(ranks)
        ]
        assert functools.reduce(operator.add, parts) == whole
    for source in range(5):
        here = sources == source
        assert whole.sums[:2, source].tolist() == [here.sum().item(), mask[here].sum().item()]
        mean = ((losses * mask)[here].double().sum() / mask[here].sum()).item()
        assert whole.losses[source] == (pytest.approx(mean, rel=1e-6) if here.any() else None)


def test_a_stage_without_loss_and_a_run_without_a_blend_have_no_totals(world: World):
    assert sum_reports([], world, 3).sources == SourceTotals.zeros(3)
    some = torch.ones(2, 4)
    assert sum_reports(reports_of(some, some, torch.tensor([0, 1]), 1), world).sources is None
    [result] = steps(tiny_run(), world, TokenView(), 1)
    assert result.sources is None


def test_a_loss_that_is_not_finite_spoils_no_total(world: World):
    losses, mask = torch.ones(3, 4), torch.ones(3, 4)
    losses[0, 1], losses[2, 3] = math.nan, math.inf
    found = sum_reports(reports_of(losses, mask, torch.tensor([0, 0, 1]), 3), world, 2)
    assert math.isnan(found.loss_sum)
    assert found.sources.sums[:2].tolist() == [[2, 1], [4, 0]] and found.sources.losses == [1.0, None]


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_a_step_tells_samples_tokens_and_loss_of_each_source(micro_batch_size: int, world: World):
    view = easy_and_hard()
    run = tiny_run(micro_batch_size=micro_batch_size, lr=1e-30)
    for step, result in enumerate(steps(run, world, view, 3)):
        origins = view.sources_of(view.sample_ids(4 * step, 4)).tolist()
        samples, tokens, loss = result.sources.sums
        assert samples.tolist() == [origins.count(0), origins.count(1)] and tokens.tolist() == (16 * samples).tolist()
        assert loss.sum() * LOSS_UNIT / 64 == pytest.approx(result.lm_loss, rel=1e-6)


def test_an_evaluation_of_a_run_on_a_blend_sums_nothing_per_source(world: World):
    """Its view need not be a blend."""
    parts = tiny_components(tiny_run(), world, train=easy_and_hard(), valid=TokenView(1))
    with open_readers(parts, parts.datasets.valid, 0, parts.run.global_batch_size_at) as readers, torch.no_grad():
        assert forward_backward(parts, readers, 4, forward_only=True).sources is None
