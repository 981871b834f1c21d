"""Packed documents that are isolated are the same documents alone: plan, attention, and the whole model's gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from megatron_ext.data.loader import LoaderConfig, to_batch
from megatron_ext.model.document_attention import attend_by_document, plan_documents, restarted_positions
from megatron_ext.model.gpt import PretrainGPT, build_model
from megatron_ext.parallel.world import World
from tests.unit.tiny import TOKENIZER, VOCAB_SIZE, tiny_run

CPU = torch.device("cpu")


def starts_of(rows: list[list[int]]) -> Tensor:
    """document_starts int64 `[b, s]` of rows of document lengths."""
    begins = []
    for lengths in rows:
        ends = torch.tensor(lengths).cumsum(0)
        begins.append(torch.repeat_interleave(ends - torch.tensor(lengths), torch.tensor(lengths)))
    return torch.stack(begins)


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])


def by_mask(query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> Tensor:
    """The same with a mask over the whole sample, which the project itself never makes; `[s, b, np * hn]`."""
    s = starts.shape[1]
    visible = (starts[:, :, None] == starts[:, None, :]) & torch.ones(s, s, dtype=torch.bool).tril()
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(q, k, v, visible[:, None], enable_gqa=k.shape[1] != q.shape[1])
    return out.permute(2, 0, 1, 3).flatten(2)


@st.composite
def cut_rows(draw: st.DrawFn) -> list[list[int]]:
    """Rows of one length, each cut into documents anywhere."""
    s = draw(st.integers(2, 24))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = sorted(draw(st.sets(st.integers(1, s - 1), max_size=s - 1)))
        rows.append([end - begin for begin, end in zip([0, *cuts], [*cuts, s], strict=True)])
    return rows


@given(cut_rows(), st.integers(0, 99))
def test_any_cut_is_the_masks_attention_and_gradient(rows: list[list[int]], seed: int):
    starts = starts_of(rows)
    generator = torch.Generator().manual_seed(seed)
    qkv = [torch.randn(starts.shape[1], len(rows), n, 4, generator=generator).requires_grad_() for n in (4, 2, 2)]
    plan = plan_documents(starts, CPU)
    if plan is None:
        assert all(len(row) == 1 for row in rows)
        return
    found, wanted = attend_by_document(*qkv, plan, kernel), by_mask(*qkv, starts)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(wanted.shape, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad(found, qkv, upstream), torch.autograd.grad(wanted, qkv, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@given(cut_rows())
def test_a_plan_has_one_slot_for_every_token_and_little_padding(rows: list[list[int]]):
    starts = starts_of(rows)
    plan = plan_documents(starts, CPU)
    if plan is None:
        return
    slots = len(plan.token_of_slot)
    assert plan.token_of_slot[plan.slot_of_token].tolist() == list(range(starts.numel()))
    assert sorted([*plan.slot_of_token.tolist(), *plan.pad_slots.tolist()]) == list(range(slots))
    assert sum(documents * length for documents, length in plan.groups) == slots <= starts.numel() / 0.75
    assert sum(documents for documents, _ in plan.groups) == sum(map(len, rows))


def test_many_documents_take_few_kernel_calls():
    generator = torch.Generator().manual_seed(0)
    cuts = (torch.randperm(4095, generator=generator)[:299] + 1).sort().values.tolist()
    lengths = [end - begin for begin, end in zip([0, *cuts], [*cuts, 4096], strict=True)]
    starts = starts_of([lengths, [1] * 4096])
    plan = plan_documents(starts, CPU)
    assert sum(documents for documents, _ in plan.groups) == 300 + 4096
    assert len(plan.groups) <= 30
    qkv = [torch.randn(4096, 2, 2, 4, generator=generator) for _ in range(3)]
    out = attend_by_document(*qkv, plan, kernel)
    torch.testing.assert_close(out[:, 1], qkv[2][:, 1].flatten(1), msg="documents of one token attend to themselves")
    begin = 0
    for length in lengths:
        part = [x[begin : begin + length, :1].permute(1, 2, 0, 3) for x in qkv]
        alone = kernel(*part).permute(2, 0, 1, 3).flatten(2)
        torch.testing.assert_close(out[begin : begin + length, :1], alone, rtol=1e-5, atol=1e-5)
        begin += length


def test_a_plan_is_made_once_for_all_layers_and_again_for_other_documents():
    starts = starts_of([[3, 5], [8]])
    plan = plan_documents(starts, CPU)
    assert plan_documents(starts.detach(), CPU) is plan, "recomputation detaches what it is given"
    assert plan_documents(starts_of([[3, 5], [8]]), CPU) is not plan
    starts[0, 4:] = 4
    assert plan_documents(starts, CPU) is not plan, "the same memory with other contents"
    assert restarted_positions(starts_of([[3, 2], [5]]), CPU).T.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]


ARCHITECTURES = ["llama", "alibi", "megatron_default", "grouped_queries", "partial_rotary_tied"]
LENGTHS = [[5, 4, 7], [1, 15], [16], [2, 2, 2, 2, 8]]


def packed_rows() -> Tensor:
    """Rows int64 `[4, 17]` of documents that each end with the end-of-document id; the 17th token is a label."""
    rows = torch.randint(0, VOCAB_SIZE - 1, (4, 17), generator=torch.Generator().manual_seed(0))
    for row, lengths in enumerate(LENGTHS):
        rows[row, torch.tensor(lengths).cumsum(0) - 1] = TOKENIZER.eod_id
    return rows


def losses_and_gradients(model: PretrainGPT, batches: list[dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """All losses one after the other, and the gradients of their sum."""
    losses = torch.cat(
        [
            model(
                batch["tokens"], batch["position_ids"], batch.get("document_starts"), labels=batch["labels"]
            ).flatten()
            for batch in batches
        ]
    )
    losses.sum().backward()
    return losses.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def model_of(architecture: str, **values: object) -> PretrainGPT:
    [model] = build_model(tiny_run(architecture, **values), VOCAB_SIZE, "cpu")
    return model


def alone() -> list[dict[str, Tensor]]:
    """Every document of `packed_rows` in a batch of its own, its last label being what came after it there."""
    rows, batches = packed_rows(), []
    for row, lengths in zip(rows, LENGTHS, strict=True):
        begin = 0
        for length in lengths:
            batches.append(to_batch(row[None, begin : begin + length + 1], LoaderConfig(1)))
            begin += length
    return batches


RECOMPUTE = [
    {},
    {"recompute_granularity": "selective"},
    {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
]


@pytest.mark.parametrize("recompute", RECOMPUTE, ids=["kept", "selective", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_isolated_documents_give_the_losses_and_gradients_of_each_alone(
    architecture: str, recompute: dict, world: World
):
    learned = architecture == "megatron_default"
    config = LoaderConfig(4, eod_id=TOKENIZER.eod_id, reset_position_ids=learned, document_starts=True)
    packed = to_batch(packed_rows(), config)
    isolated = model_of(architecture, reset_attention_mask=True, reset_position_ids=learned, **recompute)
    losses, gradients = losses_and_gradients(isolated, [packed])
    expected, wanted = losses_and_gradients(model_of(architecture), alone())
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_documents_that_are_not_isolated_give_others(architecture: str, world: World):
    packed = to_batch(packed_rows(), LoaderConfig(4, eod_id=TOKENIZER.eod_id, reset_position_ids=True))
    packed_losses, _ = losses_and_gradients(model_of(architecture), [packed])
    expected, _ = losses_and_gradients(model_of(architecture), alone())
    assert not torch.allclose(packed_losses, expected, rtol=1e-4, atol=1e-4)


def test_learned_positions_must_begin_again_too(world: World):
    packed = to_batch(packed_rows(), LoaderConfig(4, eod_id=TOKENIZER.eod_id, document_starts=True))
    losses, _ = losses_and_gradients(model_of("megatron_default", reset_attention_mask=True), [packed])
    expected, _ = losses_and_gradients(model_of("megatron_default"), alone())
    assert not torch.allclose(losses, expected, rtol=1e-4, atol=1e-4)
