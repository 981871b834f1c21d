"""Losses are summed per counted token; the division belongs to the whole global batch."""

from __future__ import annotations

import pytest
import torch

from megatron_ext.parallel.world import World
from megatron_ext.training.forward import forward_step, sum_losses
from tests.unit.tiny import VOCAB_SIZE, tiny_components, tiny_run


def test_the_sum_counts_only_what_the_mask_keeps():
    losses = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    total, counted, report = sum_losses(mask, losses)
    assert (total.item(), counted.item(), report["loss and tokens"].tolist()) == (21.0, 3, [21.0, 3.0])
    assert counted.dtype == torch.int32, "megatron-core adds it to an integer count"
    total.backward()
    assert losses.grad.equal(mask)
    assert not report["loss and tokens"].requires_grad


def test_a_micro_batch_without_counted_tokens_weighs_nothing():
    losses = torch.ones(2, 3, requires_grad=True)
    total, counted, report = sum_losses(torch.zeros(2, 3), losses)
    total.backward()
    assert (total.item(), counted.item(), report["loss and tokens"].tolist()) == (0.0, 0, [0.0, 0.0])
    assert losses.grad.count_nonzero() == 0


def test_sums_add_over_any_cut_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    losses, mask = torch.rand(8, 5, generator=generator), (torch.rand(8, 5, generator=generator) > 0.4).float()
    whole = sum_losses(mask, losses)[2]["loss and tokens"]
    for size in (1, 2, 4):
        cuts = zip(mask.split(size), losses.split(size), strict=True)
        parts = sum(sum_losses(some_mask, some)[2]["loss and tokens"] for some_mask, some in cuts)
        torch.testing.assert_close(parts, whole)


def test_a_step_takes_one_micro_batch_and_hands_its_mask_to_the_loss(world: World):
    [model] = tiny_components(tiny_run(), world).models
    windows = torch.randint(0, VOCAB_SIZE, (3, 2, 17), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(16) < 5).float().expand(2, 16)
    batches = iter(
        {
            "tokens": window[:, :-1],
            "labels": window[:, 1:],
            "position_ids": torch.arange(16).expand(2, 16),
            "loss_mask": mask,
        }
        for window in windows
    )
    losses, loss_function = forward_step(batches, model)
    assert len(list(batches)) == 2, "one was taken"
    expected = model(windows[0, :, :-1], torch.arange(16).expand(2, 16), None, labels=windows[0, :, 1:])
    assert losses.equal(expected) and losses.shape == (2, 16)
    total, counted, _ = loss_function(losses)
    torch.testing.assert_close(total, losses[:, :5].sum())
    assert counted == 10


def test_a_stage_in_the_middle_reads_nothing_and_has_no_loss():
    calls = []

    def stage(*arguments: object) -> torch.Tensor:
        calls.append(arguments)
        return torch.ones(1)

    output, loss_function = forward_step(None, stage)
    assert calls == [(None, None, None)] and output.equal(torch.ones(1))
    with pytest.raises(AssertionError, match="only the last stage"):
        loss_function(output)


def test_where_documents_begin_takes_the_place_of_the_mask():
    calls = []

    def stage(*arguments: object, labels: object, loss_mask: object) -> torch.Tensor:
        calls.append(arguments)
        return torch.ones(1, 2)

    batch = {name: torch.zeros(1, 2) for name in ("tokens", "position_ids", "labels", "loss_mask")}
    forward_step(iter([batch]), stage)
    forward_step(iter([{**batch, "document_starts": torch.tensor([[0, 1]])}]), stage)
    assert calls[0][2] is None and calls[1][2].tolist() == [[0, 1]]


@pytest.mark.parametrize("rows_of_a_sample", [1, 3])
def test_with_sources_loss_and_tokens_of_each_sample_are_reported(rows_of_a_sample: int):
    """Also of samples that are cut into shorter sequences, whose rows follow one another."""
    generator = torch.Generator().manual_seed(0)
    losses, mask = torch.rand(4, 6, generator=generator), (torch.rand(4, 6, generator=generator) > 0.4).float()
    losses.requires_grad = True
    shape = (4 * rows_of_a_sample, 6 // rows_of_a_sample)
    sources = torch.tensor([1, 0, 1, 2])
    plain = sum_losses(mask, losses)
    total, counted, report = sum_losses(mask.reshape(shape), losses.reshape(shape), sources)
    assert total.item() == pytest.approx(plain[0].item()) and counted == plain[1]
    expected = torch.stack([(losses * mask).detach().double().sum(1), mask.double().sum(1)])
    assert report["loss and tokens of samples"].equal(expected) and report["sources"].equal(sources)
    assert not report["loss and tokens of samples"].requires_grad
    assert set(plain[2]) == {"loss and tokens"}


def test_a_step_hands_the_sources_to_the_loss():
    batch = {name: torch.ones(2, 2) for name in ("tokens", "position_ids", "labels", "loss_mask")}
    batch["sources"] = torch.tensor([4, 0])
    losses, loss_function = forward_step(iter([batch]), lambda *_, labels, loss_mask: labels)
    assert loss_function(losses)[2]["sources"].tolist() == [4, 0]


def test_the_largest_logits_are_reported_as_a_sum_of_squares_over_counted_tokens():
    losses = torch.ones(2, 3, requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    largest = torch.tensor([[1.0, 100.0, -2.0], [100.0, 3.0, 100.0]])
    total, _, report = sum_losses(mask, losses, largest_logits=largest)
    assert report["squared logits"].item() == 14.0 and total.item() == 3.0
    assert "squared logits" not in sum_losses(mask, losses)[2]


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_step_hands_the_largest_logits_of_its_model_to_the_loss(wrapped: bool):
    class Stage:
        largest_logits = torch.full((2, 2), 3.0)

        def __call__(self, *_: object, labels: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
            return labels

    class Wrapper(Stage):
        largest_logits = None
        module = Stage()

    batch = {name: torch.ones(2, 2) for name in ("tokens", "position_ids", "labels", "loss_mask")}
    losses, loss_function = forward_step(iter([batch]), Wrapper() if wrapped else Stage())
    assert loss_function(losses)[2]["squared logits"].item() == 36.0
