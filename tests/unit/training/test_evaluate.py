"""Evaluation measures the model, the same way every time, and leaves training as it was."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_ext.data.loader import LoaderConfig, to_batch
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.evaluate import evaluate, evaluation_batches
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step
from tests.unit.tiny import TOKENIZER, TokenView, tiny_components, tiny_run


def loss_per_token(parts: Components, view: TokenView, ids: list[int], mask: bool = False) -> float:
    """Summed loss over counted tokens of some samples, one sample at a time."""
    total = counted = 0.0
    config = LoaderConfig(1, eod_id=TOKENIZER.eod_id, eod_mask_loss=mask)
    for chunk in parts.chunks:
        chunk.eval()
    with torch.no_grad():
        for sample in ids:
            batch = to_batch(torch.from_numpy(view[sample])[None], config)
            losses = parts.models[0](batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
            total += (losses * batch["loss_mask"]).sum().item()
            counted += batch["loss_mask"].sum().item()
    return total / counted


@pytest.mark.parametrize(
    ("samples", "batch", "iters", "expected"),
    [(100, 4, 10, 10), (39, 4, 10, 9), (40, 4, 10, 10), (3, 4, 10, 1), (0, 4, 10, 1), (100, 4, 1, 1)],
)
def test_number_of_batches(samples: int, batch: int, iters: int, expected: int):
    assert evaluation_batches(samples, batch, iters) == expected


def test_evaluation_sees_whole_samples_while_training_sees_short_sequences(world: World):
    parts = tiny_components(tiny_run(seq_length_warmup=("4:256",)), world, valid=TokenView(1))
    assert evaluate(parts) == pytest.approx(loss_per_token(parts, TokenView(1), list(range(8))), rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
def test_the_loss_is_the_mean_over_the_first_samples_without_dropout(
    micro_batch_size: int, dropout: float, world: World
):
    view = TokenView(1)
    run = tiny_run(micro_batch_size=micro_batch_size, hidden_dropout=dropout, attention_dropout=dropout)
    parts = tiny_components(run, world, valid=view)
    assert evaluate(parts) == pytest.approx(loss_per_token(parts, view, list(range(8))), rel=1e-6)


def test_every_token_weighs_alike_whichever_batch_it_is_in(world: World):
    """Batches that count different numbers of tokens: the mean is over tokens, not over batches."""
    view = TokenView(1, eod_share=0.08)
    parts = tiny_components(tiny_run(eod_mask_loss=True, eval_iters=3), world, valid=view)
    with torch.no_grad():
        parts.models[0].output_layer.weight.mul_(40)  # losses that differ from token to token
    assert evaluate(parts) == pytest.approx(loss_per_token(parts, view, list(range(12)), mask=True), rel=1e-6)


def test_a_batch_without_counted_tokens_does_not_spoil_the_rest(world: World):
    view = TokenView(1)
    view.tokens[:4] = TOKENIZER.eod_id
    parts = tiny_components(tiny_run(eod_mask_loss=True, eval_iters=2), world, valid=view)
    value = evaluate(parts)
    assert math.isfinite(value)
    assert value == pytest.approx(loss_per_token(parts, view, list(range(8)), mask=True), rel=1e-6)


def test_every_evaluation_sees_the_same_samples(world: World):
    view = TokenView(1)
    parts = tiny_components(tiny_run(), world, valid=view)
    first = evaluate(parts)
    assert evaluate(parts) == first
    assert view.seen == list(range(8)) * 2


def test_a_view_smaller_than_one_batch_starts_over(world: World):
    view = TokenView(1, samples=3)
    parts = tiny_components(tiny_run(), world, valid=view)
    evaluate(parts)
    assert view.seen == [0, 1, 2, 0]


def test_the_test_view_is_its_own(world: World):
    valid, test = TokenView(1), TokenView(2)
    parts = tiny_components(tiny_run(), world, valid=valid, test=test)
    losses = evaluate(parts, "valid"), evaluate(parts, "test")
    assert losses[0] != losses[1] and len(valid.seen) == len(test.seen) == 8


def test_the_full_batch_is_used_during_a_ramp_up(world: World):
    view = TokenView(1)
    evaluate(tiny_components(tiny_run(rampup_batch_size=(2, 2, 100)), world, valid=view))
    assert view.seen == list(range(8))


def test_the_train_mode_comes_back(world: World):
    parts = tiny_components(tiny_run(), world, valid=TokenView(1))
    evaluate(parts)
    assert all(module.training for module in parts.models[0].modules())


def test_the_train_mode_comes_back_after_an_error(world: World):
    class Broken(TokenView):
        def __getitem__(self, sample_id: int):
            raise KeyError("unreadable")

    parts = tiny_components(tiny_run(), world, valid=Broken())
    with pytest.raises(KeyError, match="unreadable"):
        evaluate(parts)
    assert all(module.training for module in parts.models[0].modules()) and torch.is_grad_enabled()


def test_training_goes_on_as_if_nothing_had_been_evaluated(world: World):
    curves = []
    for evaluates in (False, True):
        run = tiny_run(hidden_dropout=0.1, attention_dropout=0.1)
        parts = tiny_components(run, world, valid=TokenView(1))
        state, losses = TrainState(), []
        with open_readers(parts, parts.datasets.train, 0, run.global_batch_size_at) as readers:
            for _ in range(4):
                result = train_step(parts, state, readers)
                state.advance(result)
                losses.append((result.lm_loss, result.grad_norm))
                if evaluates:
                    evaluate(parts)
        curves.append(losses)
    assert curves[0] == curves[1]
