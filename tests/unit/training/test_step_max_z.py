"""With a max-z loss a step trains on two losses and tells both, each by itself."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_ext.config import RunConfig
from megatron_ext.data.loader import LoaderConfig, to_batch
from megatron_ext.model.gpt import build_model
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.evaluate import evaluate
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step
from tests.unit.tiny import TOKENIZER, VOCAB_SIZE, TokenView, tiny_components, tiny_run


def first_step(parts: Components) -> StepResult:
    with open_readers(parts, parts.datasets.train, 0, parts.run.global_batch_size_at) as readers:
        return train_step(parts, TrainState(), readers)


def first_batch(view: TokenView, run: RunConfig) -> dict[str, torch.Tensor]:
    loader = LoaderConfig(1, eod_id=TOKENIZER.eod_id, eod_mask_loss=run.data.eod_mask_loss)
    return to_batch(torch.stack([torch.from_numpy(view[i]) for i in range(4)]), loader)


def test_max_z_loss_is_told_beside_the_plain_loss(world: World):
    """However the batch is cut, over the counted tokens alone; and evaluation knows nothing of it."""
    view = TokenView(eod_share=0.01)
    plain = tiny_run(eod_mask_loss=True)
    expected = first_step(tiny_components(plain, world, train=view))
    assert expected.max_z_loss is None
    [model] = build_model(plain, VOCAB_SIZE, "cpu")
    batch = first_batch(view, plain)
    logits = model(batch["tokens"], batch["position_ids"], None)[..., :VOCAB_SIZE]
    mask = batch["loss_mask"]
    z_loss = 0.5 * (logits.amax(-1).square() * mask).sum() / mask.sum()
    assert 0 < mask.sum() < mask.numel()
    for size in (1, 2, 4):
        parts = tiny_components(
            plain.with_values(micro_batch_size=size, max_z_loss_weight=0.5), world, train=view, valid=view
        )
        before = evaluate(parts)
        result = first_step(parts)
        assert result.lm_loss == pytest.approx(expected.lm_loss, rel=1e-6) and before > 0
        assert result.max_z_loss == pytest.approx(z_loss.item(), rel=1e-5)
        assert result.grad_norm > 1.01 * expected.grad_norm
        assert math.isfinite(evaluate(parts)) and parts.models[0].largest_logits is None


def test_training_on_max_z_is_plain_torchs(world: World):
    """The update is that of the mean cross entropy plus weight times the mean square of the largest logit."""
    run, view = tiny_run(max_z_loss_weight=0.3, clip_grad=0.0, optimizer="sgd", sgd_momentum=0.0), TokenView()
    parts = tiny_components(run, world, train=view)
    result = first_step(parts)
    [model] = build_model(run, VOCAB_SIZE, "cpu")
    batch = first_batch(view, run)
    logits = model(batch["tokens"], batch["position_ids"], None)[..., :VOCAB_SIZE]
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    (cross_entropy + 0.3 * logits.amax(-1).square().mean()).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert result.lm_loss == pytest.approx(cross_entropy.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)
