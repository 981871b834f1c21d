"""The samples of global batch k do not depend on ranks, workers, micro-batch size or restarts (law L3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.datasets import DatasetRequest, View, build_datasets
from megatron_ext.data.loader import LoaderConfig, MicroBatches, to_batch
from tests.unit.data.oracle import EOD, core_datasets
from tests.unit.data.small import TOKENIZER, data_config, make_dataset, random_documents, random_masks, write_masked

GLOBAL_BATCH = 12


def ramp(consumed: int) -> int:
    """A global batch size that grows: 12, then 24 from sample 36 on."""
    return GLOBAL_BATCH if consumed < 3 * GLOBAL_BATCH else 2 * GLOBAL_BATCH


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    folder = tmp_path_factory.mktemp("loader")
    words = ("2", make_dataset(folder, "a", 1), "1", make_dataset(folder, "b", 2))
    return build_datasets(DatasetRequest(data_config(data_path=words), TOKENIZER, 16, (100, 0, 0), 1)).train


def stream(view: View, start: int, num_batches: int, mbs: int, dp_size: int, workers: int) -> list[np.ndarray]:
    """The rows of each global batch, gathered from all ranks in order, int64 `[B, s + 1]`."""
    readers = [MicroBatches(view, start, ramp, LoaderConfig(mbs, rank, dp_size, workers)) for rank in range(dp_size)]
    batches, consumed = [], start
    for _ in range(num_batches):
        micro = []
        for _ in range(ramp(consumed) // (mbs * dp_size)):
            for reader in readers:
                batch = next(reader)
                micro.append(torch.cat([batch["tokens"], batch["labels"][:, -1:]], 1).numpy())
        batches.append(np.concatenate(micro))
        consumed += ramp(consumed)
    for reader in readers:
        reader.close()
    return batches


def test_batches_are_the_views_samples_in_order(view: View):
    consumed = 0
    for batch in stream(view, 0, 5, 3, 2, 0):
        wanted = np.stack([view[int(i)] for i in view.sample_ids(consumed, ramp(consumed))])
        np.testing.assert_array_equal(batch, wanted)
        consumed += len(batch)


@pytest.mark.parametrize("workers", [0, 2])
def test_places_number_the_samples_of_all_ranks(view: View, workers: int):
    """From the start of the stream, through a growing batch; and only where asked for."""
    ranks = [LoaderConfig(2, rank, 3, workers, places=True) for rank in range(3)]
    readers = [MicroBatches(view, GLOBAL_BATCH, ramp, config) for config in ranks]
    found = [next(reader)["places"].tolist() for _ in range(8) for reader in readers]
    assert [place for places in found for place in places] == list(range(GLOBAL_BATCH, 5 * GLOBAL_BATCH))
    readers.append(MicroBatches(view, 0, ramp, LoaderConfig(2)))
    assert "places" not in next(readers[-1])
    for reader in readers:
        reader.close()


@pytest.mark.parametrize(("mbs", "dp_size"), [(1, 1), (1, 4), (2, 3), (3, 1), (6, 2), (12, 1), (1, 12)])
def test_batches_do_not_depend_on_ranks_and_micro_batch_size(view: View, mbs: int, dp_size: int):
    for found, wanted in zip(stream(view, 0, 5, mbs, dp_size, 0), stream(view, 0, 5, 12, 1, 0), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_workers(view: View, workers: int):
    for found, wanted in zip(stream(view, 0, 5, 2, 2, workers), stream(view, 0, 5, 2, 2, 0), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("batches_before", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_restarts(view: View, batches_before: int, workers: int):
    whole = stream(view, 0, 6, 2, 2, 0)
    start = sum(len(batch) for batch in whole[:batches_before])
    for found, wanted in zip(stream(view, start, 2, 1, 3, workers), whole[batches_before:], strict=False):
        np.testing.assert_array_equal(found, wanted)


def test_shapes_and_types(view: View):
    batch = next(MicroBatches(view, 0, ramp, LoaderConfig(3)))
    sources = batch.pop("sources")
    assert sources.dtype == torch.int64
    assert sources.tolist() == view.sources_of(view.sample_ids(0, 3)).tolist()
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(batch, (3, 16))
    assert batch["tokens"].dtype == batch["labels"].dtype == batch["position_ids"].dtype == torch.int64
    assert batch["loss_mask"].dtype == torch.float32
    assert torch.equal(batch["tokens"][:, 1:], batch["labels"][:, :-1])


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_trainings_random_numbers_alone(view: View, workers: int):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    reader = MicroBatches(view, 0, ramp, LoaderConfig(2, num_workers=workers))
    next(reader)
    reader.close()
    assert torch.equal(before, torch.random.get_rng_state())


def test_closing_ends_the_reading_processes_and_the_stream(view: View):
    before = set(psutil.Process().children(recursive=True))
    reader = MicroBatches(view, 0, ramp, LoaderConfig(2, num_workers=2))
    next(reader)
    started = set(psutil.Process().children(recursive=True)) - before
    assert len(started) == 2
    reader.close()
    reader.close()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    with pytest.raises(StopIteration):
        next(reader)


@pytest.mark.parametrize("eod_mask_loss", [False, True])
@pytest.mark.parametrize("reset_position_ids", [False, True])
def test_masks_and_positions_are_megatron_cores(eod_mask_loss: bool, reset_position_ids: bool, tmp_path: Path):
    from megatron_ext.data.store.indexed_writer import write_indexed

    random = np.random.default_rng(0)
    documents = [np.append(random.integers(0, 900, random.integers(0, 9)), EOD) for _ in range(100)]
    write_indexed(tmp_path / "data", documents, np.uint16)
    core = core_datasets(
        tmp_path, (30, 0, 0), blend=([str(tmp_path / "data")], None), split="1",
        eod_mask_loss=eod_mask_loss, reset_position_ids=reset_position_ids,
    )[0]  # fmt: skip
    for index in range(30):
        wanted = core[index]
        row = torch.cat([wanted["tokens"], wanted["labels"][-1:]])[None]
        config = LoaderConfig(1, eod_id=EOD, eod_mask_loss=eod_mask_loss, reset_position_ids=reset_position_ids)
        for name, tensor in to_batch(row, config).items():
            assert torch.equal(tensor[0], wanted[name].to(tensor.dtype)), name


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_positions_count_from_the_last_end_of_document(ends: list[bool]):
    row = torch.tensor([[7 if end else 1 for end in ends]])
    batch = to_batch(row, LoaderConfig(1, eod_id=7, eod_mask_loss=True, reset_position_ids=True))
    position, positions = 0, []
    for end in ends[:-1]:
        positions.append(position)
        position = 0 if end else position + 1
    assert batch["position_ids"][0].tolist() == positions
    assert batch["loss_mask"][0].tolist() == [0.0 if end else 1.0 for end in ends[:-1]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_the_mask_of_each_sample_reaches_its_batch(packing: str, workers: int, tmp_path: Path):
    """Through a mixture of a dataset with a mask and one without, in any order, whoever reads."""
    documents = random_documents(1, 60, largest_length=17)
    write_masked(tmp_path / "masked", documents, random_masks(2, documents))
    words = ("2", str(tmp_path / "masked"), "1", make_dataset(tmp_path, "plain", 3, 50, largest_length=17))
    data = data_config(data_path=words, split="1", dataset_packing=packing)
    view = build_datasets(DatasetRequest(data, TOKENIZER, 16, (100, 0, 0), 1)).train
    reader = MicroBatches(view, 0, ramp, LoaderConfig(6, num_workers=workers, eod_id=EOD))
    ids, weights = view.sample_ids(0, 36), []
    for first in range(0, 36, 6):
        batch = next(reader)
        for row, sample_id in enumerate(ids[first : first + 6]):
            tokens, mask = view[int(sample_id)], view.loss_mask(int(sample_id))
            mask = np.ones(17, np.uint8) if mask is None else mask
            assert batch["tokens"][row].tolist() == tokens[:-1].tolist()
            assert batch["labels"][row].tolist() == np.where(mask == 2, EOD, tokens)[1:].tolist()
            assert batch["loss_mask"][row].tolist() == (mask[1:] != 0).tolist()
            weights.append(batch["loss_mask"][row].sum().item())
    reader.close()
    assert 16 in weights or packing == "documents"
    assert min(weights) < 16


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 7]), st.integers(0, 2)), min_size=2, max_size=20), st.booleans())
def test_position_j_is_weighed_by_what_is_learned_at_token_j_plus_1(tokens: list[tuple[int, int]], eod_mask_loss: bool):
    row, codes = (torch.tensor([part]) for part in zip(*tokens, strict=True))
    config = LoaderConfig(1, eod_id=7, eod_mask_loss=eod_mask_loss)
    batch = to_batch(row, config, codes.to(torch.uint8))
    for j in range(len(tokens) - 1):
        (token, _), (label, code) = tokens[j], tokens[j + 1]
        assert batch["tokens"][0, j] == token
        assert batch["labels"][0, j] == (7 if code == 2 else label)
        assert batch["loss_mask"][0, j] == (0.0 if code == 0 or (eod_mask_loss and token == 7) else 1.0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_each_token_knows_where_its_document_begins(ends: list[bool]):
    row = torch.tensor([[7 if end else 1 for end in ends]])
    assert "document_starts" not in to_batch(row, LoaderConfig(1, eod_id=7))
    batch = to_batch(row, LoaderConfig(1, eod_id=7, document_starts=True))
    begin, begins = 0, []
    for place, end in enumerate(ends[:-1]):
        begins.append(begin)
        begin = place + 1 if end else begin
    assert batch["document_starts"].tolist() == [begins]
    assert batch["document_starts"].dtype == torch.int64
    assert batch["position_ids"].tolist() == [list(range(len(ends) - 1))]


def lengths(consumed: int) -> int:
    """Sequences of 4 for the first 36 samples, of 8 for the next 24, then whole samples of 16."""
    return 4 if consumed < 36 else 8 if consumed < 60 else 16


EVERY_MASK = {"eod_mask_loss": True, "reset_position_ids": True, "document_starts": True}


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(1, 3), st.sampled_from([1, 2, 3, 4, 6, 12]), st.booleans())
def test_a_sample_that_is_cut_is_its_sequences_one_by_one(data: st.DataObject, b: int, s: int, learned: bool):
    """Sequence i of a sample is what a sample of the tokens i s .. (i + 1) s would be, masks and positions too."""
    drawn = st.lists(st.lists(st.sampled_from([1, 2, 7]), min_size=13, max_size=13), min_size=b, max_size=b)
    rows, codes = torch.tensor(data.draw(drawn)), torch.tensor(data.draw(drawn)).remainder(3).to(torch.uint8)
    config = LoaderConfig(1, eod_id=7, **data.draw(st.fixed_dictionaries(dict.fromkeys(EVERY_MASK, st.booleans()))))
    found = to_batch(rows, config, codes if learned else None, s)
    pieces = [
        to_batch(rows[r, i : i + s + 1][None], config, codes[r, i : i + s + 1][None] if learned else None)
        for r in range(b)
        for i in range(0, 12, s)
    ]
    for name, tensor in found.items():
        assert tensor.equal(torch.cat([piece[name] for piece in pieces])), name
        assert tensor.is_contiguous() and tensor.shape == (b * 12 // s, s)
    whole = to_batch(rows, config, codes if learned else None)
    for name in ("tokens", "labels", "loss_mask"):
        assert found[name].flatten().equal(whole[name].flatten()), f"{name}: another token, or in another order"
    assert found.keys() == whole.keys()


def test_samples_are_never_cut_over_their_end():
    with pytest.raises(RuntimeError):
        to_batch(torch.zeros(2, 7, dtype=torch.int64), LoaderConfig(2), None, 4)


@pytest.mark.parametrize(
    ("mbs", "dp_size", "workers", "start"), [(12, 1, 0, 0), (3, 1, 2, 12), (1, 2, 0, 36), (2, 3, 2, 60)]
)
def test_lengths_go_by_consumed_samples_whoever_reads_and_wherever_a_run_resumes(
    view: View, mbs: int, dp_size: int, workers: int, start: int
):
    seen: list[list[int]] = [[] for _ in range(dp_size)]
    readers = [
        MicroBatches(
            view, start, ramp,
            LoaderConfig(mbs, rank, dp_size, workers, record=seen[rank].extend, seq_length=lengths),
        )
        for rank in range(dp_size)
    ]  # fmt: skip
    consumed = start
    while consumed < 108:
        length, ids = lengths(consumed), view.sample_ids(consumed, ramp(consumed))
        for first in range(0, ramp(consumed), mbs * dp_size):
            for rank, reader in enumerate(readers):
                batch, mine = next(reader), ids[first + rank * mbs :][:mbs]
                samples = np.stack([view[int(i)] for i in mine])
                assert batch["tokens"].shape == (mbs * 16 // length, length)
                np.testing.assert_array_equal(batch["tokens"].reshape(mbs, 16), samples[:, :-1])
                np.testing.assert_array_equal(batch["labels"].reshape(mbs, 16), samples[:, 1:])
                assert batch["sources"].tolist() == view.sources_of(mine).tolist()
                assert seen[rank][-mbs:] == mine.tolist()
        consumed += ramp(consumed)
    for reader in readers:
        reader.close()


def test_sequences_of_nothing_but_padding_weigh_nothing(tmp_path: Path):
    prefix = make_dataset(tmp_path, "rows", 3, 40, largest_length=17)
    data = data_config(data_path=(prefix,), split="1", dataset_packing="documents")
    view = build_datasets(DatasetRequest(data, TOKENIZER, 16, (36, 0, 0), 1)).train
    weights = []
    for seq_length in (None, lambda _: 2):
        reader = MicroBatches(view, 0, ramp, LoaderConfig(12, eod_id=EOD, seq_length=seq_length, **EVERY_MASK))
        weights.append(next(reader)["loss_mask"])
    assert weights[1].flatten().equal(weights[0].flatten())
    assert (weights[1].sum(1) == 0).sum() > 5
    assert weights[1].sum() > 5
