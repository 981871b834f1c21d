"""Readers start where they are told, belong to the chunks that read data, and are closed whatever happens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_ext.parallel.grid import Coordinates, Grid
from megatron_ext.training import readers as module
from megatron_ext.training.readers import open_readers
from tests.unit.tiny import TOKENIZER, TokenView, tiny_run

FIRST, MIDDLE, LAST = (
    SimpleNamespace(pre_process=first, post_process=last)
    for first, last in ((True, False), (False, False), (False, True))
)
WHOLE = SimpleNamespace(pre_process=True, post_process=True)


def parts_of(
    *models: SimpleNamespace, dp: tuple[int, int] = (0, 1), cp: tuple[int, int] = (0, 1), **values: object
) -> SimpleNamespace:
    import torch

    world = SimpleNamespace(
        at=Coordinates(0, cp_rank=cp[0], dp_rank=dp[0], pp_rank=0),
        grid=Grid(1, 1, dp_size=dp[1], cp_size=cp[1]),
        device=torch.device("cpu"),
    )
    profile = SimpleNamespace(timed_items=lambda batches: batches)
    return SimpleNamespace(
        run=tiny_run(**values), world=world, tokenizer=TOKENIZER, models=list(models), profile=profile
    )


def test_a_reader_gives_the_micro_batches_in_order_from_its_start():
    view = TokenView()
    with open_readers(parts_of(WHOLE), view, 5, lambda _: 4) as [reader]:
        batches = [next(reader) for _ in range(4)]
    assert view.seen == [5, 6, 7, 8, 9, 10, 11, 0]
    for index, batch in enumerate(batches):
        rows = view.tokens[view.seen[2 * index : 2 * index + 2]]
        assert (batch["tokens"].numpy() == rows[:, :-1]).all() and (batch["labels"].numpy() == rows[:, 1:]).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_data_parallel_ranks_share_each_global_batch(rank: int):
    view = TokenView()
    with open_readers(parts_of(WHOLE, dp=(rank, 2)), view, 0, lambda _: 8) as [reader]:
        for _ in range(2):
            next(reader)
    others = TokenView()
    with open_readers(parts_of(WHOLE, dp=(1 - rank, 2)), others, 0, lambda _: 8) as [reader]:
        for _ in range(2):
            next(reader)
    assert sorted(view.seen + others.seen) == list(range(8))


def test_ordered_sums_read_consecutive_micro_batches():
    view, parts = TokenView(), parts_of(WHOLE, dp=(1, 2), deterministic_data_parallel=True)
    with open_readers(parts, view, 0, lambda _: 8) as [reader]:
        for _ in range(2):
            next(reader)
    assert view.seen == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("models", "reads"),
    [
        ([WHOLE], [True]),
        ([FIRST], [True]),
        ([MIDDLE], [False]),
        ([LAST], [True]),
        ([FIRST, MIDDLE], [True, False]),
        ([MIDDLE, MIDDLE, LAST], [False, False, True]),
    ],
)
def test_only_chunks_with_embedding_or_loss_read(models: list, reads: list[bool]):
    with open_readers(parts_of(*models), TokenView(), 0, lambda _: 4) as readers:
        assert [reader is not None for reader in readers] == reads


def test_chunks_of_one_rank_read_the_same_samples():
    with open_readers(parts_of(FIRST, LAST), TokenView(), 3, lambda _: 4) as [first, last]:
        for _ in range(3):
            assert next(first)["tokens"].equal(next(last)["tokens"])


def test_every_chunk_reads_the_short_sequences_of_its_time():
    """Samples 0 to 3 in sequences of 4, later ones whole."""
    view, length = TokenView(), lambda consumed: 4 if consumed < 4 else 16
    with open_readers(parts_of(FIRST, LAST), view, 0, lambda _: 4, seq_length=length) as readers:
        for shape in ((8, 4), (8, 4), (2, 16)):
            assert [tuple(next(reader)["tokens"].shape) for reader in readers] == [shape] * 2


def test_ranks_of_a_sequence_read_the_same_samples_and_keep_their_parts_of_them():
    """But all of them know where documents begin in the whole row, and which source it comes from."""
    import torch

    from megatron_ext.parallel.sequence_chunks import join_parts
    from tests.unit.training.blends import easy_and_hard

    def batch_of(cp: tuple[int, int]) -> dict:
        parts = parts_of(WHOLE, cp=cp, reset_attention_mask=True, reset_position_ids=True)
        with open_readers(parts, easy_and_hard(), 0, lambda _: 4) as [reader]:
            return next(reader)

    whole, shared = batch_of((0, 1)), [batch_of((rank, 2)) for rank in range(2)]
    assert len(whole) == 6
    for name, tensor in whole.items():
        if name in ("document_starts", "sources"):
            assert all(batch[name].equal(tensor) for batch in shared), name
        else:
            parts = torch.stack([batch[name].T for batch in shared])
            assert join_parts(parts).T.equal(tensor) and len(parts[0]) == tensor.shape[1] // 2, name


@pytest.mark.parametrize("fails", [False, True])
def test_every_reader_is_closed_at_the_end(fails: bool, monkeypatch: pytest.MonkeyPatch):
    closed = []
    close = module.MicroBatches.close
    monkeypatch.setattr(module.MicroBatches, "close", lambda batches: (closed.append(batches), close(batches)))
    try:
        with open_readers(parts_of(FIRST, MIDDLE, LAST), TokenView(), 0, lambda _: 4) as readers:
            next(readers[0])
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert len(closed) == 2
    for reader in (readers[0], readers[2]):
        with pytest.raises(StopIteration):
            next(reader)


def test_masks_and_positions_are_those_the_run_asks_for():
    view = TokenView(eod_share=0.1)
    for mask, reset in ((False, False), (True, False), (False, True)):
        parts = parts_of(WHOLE, eod_mask_loss=mask, reset_position_ids=reset)
        with open_readers(parts, view, 8, lambda _: 4) as [reader]:
            batch = next(reader)
        is_end = batch["tokens"] == TOKENIZER.eod_id
        assert is_end[:, :-1].any()
        assert (batch["loss_mask"] == 0).equal(is_end & mask)
        assert (batch["position_ids"][:, 1:] == 0).any().item() is reset


@pytest.mark.parametrize(
    ("values", "reads"),
    [
        ({"reset_attention_mask": True}, True),
        ({"reset_position_ids": True}, True),  # of RoPE, which every stage rotates by
        ({"reset_position_ids": True, "position_embedding_type": "learned_absolute"}, False),
        ({}, False),
    ],
)
def test_every_stage_reads_where_attention_must_know_documents(values: dict, reads: bool):
    view = TokenView(eod_share=0.1)
    with open_readers(parts_of(FIRST, MIDDLE, LAST, **values), view, 8, lambda _: 4) as readers:
        assert (readers[1] is not None) is reads
        batches = [next(reader) for reader in readers if reader is not None]
    assert len({tuple(batch["tokens"].flatten().tolist()) for batch in batches}) == 1
    for batch in batches:
        assert ("document_starts" in batch) is reads
        if reads:
            ends = batch["tokens"][:, :-1] == TOKENIZER.eod_id
            assert (batch["document_starts"].diff(dim=1) > 0).equal(ends)


def test_on_a_device_where_documents_begin_and_sources_stay_with_the_host():
    import torch

    from tests.unit.training.blends import easy_and_hard

    parts = parts_of(WHOLE, reset_attention_mask=True)
    parts.world.device = torch.device("meta")
    with open_readers(parts, easy_and_hard(), 0, lambda _: 4) as [reader]:
        batch = next(reader)
    assert {name for name, tensor in batch.items() if tensor.device.type == "cpu"} == {"document_starts", "sources"}
