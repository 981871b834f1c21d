"""Views laid end to end are one view: the same samples, from the same places, under one order for all of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.document_samples import DocumentView
from megatron_ext.data.joined_view import JoinedTarget, JoinedView, joined_target
from megatron_ext.data.loader import LoaderConfig, MicroBatches
from megatron_ext.data.order import PermutedOrder
from megatron_ext.data.order_file import FileOrder, OrderFileWriter, OrderTarget, write_order_file
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.views import OrderedView, WindowView
from megatron_ext.errors import DataError
from tests.unit.data.mutants import damaged_bytes
from tests.unit.data.small import make_dataset, random_documents, random_masks, write_masked

SEQ = 16
TARGETS = [OrderTarget("first", 0, 80, SEQ, 3), OrderTarget("second", 5, 9, SEQ, 2), OrderTarget("third", 0, 1, SEQ, 1)]


@pytest.fixture
def views(tmp_path: Path) -> list[OrderedView]:
    """Windows of a dataset, padded documents of another, windows of one with a mask."""
    short = make_dataset(tmp_path, "short", 1, 30, largest_length=SEQ + 1)
    documents = random_documents(2, 40)
    write_masked(tmp_path / "masked", documents, random_masks(3, documents))
    return [
        WindowView(IndexedDataset(make_dataset(tmp_path, "plain", 0, 60)), Span(3, 50), SEQ),
        DocumentView(IndexedDataset(short), Span(2, 30), SEQ, pad_id=7),
        WindowView(IndexedDataset(tmp_path / "masked"), Span(0, 40), SEQ, pad_id=7),
    ]


def located(views: list[OrderedView]) -> list[tuple[int, int]]:
    """The view and its own id of every sample."""
    return [(index, sample) for index, view in enumerate(views) for sample in range(len(view))]


def test_samples_are_those_of_the_views_one_after_the_other(views: list[OrderedView]):
    joined = JoinedView(views)
    assert len(joined) == len(located(views)) == joined.target.num_samples
    assert joined.source_names == tuple(view.source_names[0] for view in views)
    assert joined.num_tokens == sum(view.num_tokens for view in views)
    assert joined.remainder_tokens == sum(view.remainder_tokens for view in views)
    for sample, (index, own) in enumerate(located(views)):
        np.testing.assert_array_equal(joined[sample], views[index][own])
        wanted, found = views[index].loss_mask(own), joined.loss_mask(sample)
        assert (found is None) == (wanted is None) and (wanted is None or np.array_equal(found, wanted))
        assert joined.token_ranges(sample) == views[index].token_ranges(own)
    assert joined.sources_of(np.arange(len(joined))).tolist() == [index for index, _ in located(views)]
    for outside in (-1, len(joined)):
        for read in (
            joined.__getitem__,
            joined.loss_mask,
            joined.token_ranges,
            lambda i: joined.read(np.array([0, i])),
        ):
            with pytest.raises(IndexError, match=f"sample {outside} of {len(joined)}"):
                read(outside)


def test_a_micro_batch_is_its_samples(views: list[OrderedView]):
    joined = JoinedView(views)
    ids = np.random.default_rng(0).permutation(len(joined))
    tokens, mask = joined.read(ids)
    for row, sample in enumerate(ids.tolist()):
        learned = joined.loss_mask(sample)
        np.testing.assert_array_equal(tokens[row], joined[sample])
        np.testing.assert_array_equal(mask[row], np.ones(SEQ + 1) if learned is None else learned)
    assert JoinedView(views[:1]).read(np.arange(4))[1] is None


def test_batches_do_not_depend_on_ranks_micro_batches_and_workers(views: list[OrderedView]):
    joined = JoinedView(views).ordered_by(PermutedOrder(sum(map(len, views)), "key"))

    def stream(mbs: int, ranks: int, workers: int, start: int) -> list[tuple[list, int]]:
        configs = [LoaderConfig(mbs, rank, ranks, workers, eod_id=1000) for rank in range(ranks)]
        readers = [MicroBatches(joined, start, lambda _: 12, config) for config in configs]
        found = []
        for _ in range((48 - start) // (mbs * ranks)):
            for batch in map(next, readers):
                found += zip(batch["tokens"].tolist(), batch["sources"].tolist(), strict=True)
        for reader in readers:
            reader.close()
        return found

    wanted = [(joined[i][:-1].tolist(), int(joined.sources_of(np.array([i]))[0])) for i in joined.sample_ids(0, 48)]
    assert len({source for _, source in wanted}) == 3
    for mbs, ranks, workers in ((12, 1, 0), (1, 4, 0), (2, 3, 0), (3, 2, 2)):
        assert stream(mbs, ranks, workers, 0) == wanted
    assert stream(2, 2, 1, 24) == wanted[24:]


def changed(number: int, **values: object) -> list[OrderTarget]:
    """The targets, one of them another."""
    return [dataclasses.replace(t, **values) if i == number - 1 else t for i, t in enumerate(TARGETS)]


def test_one_target_alone_keeps_its_meaning():
    assert joined_target(TARGETS[:1]) is TARGETS[0]
    assert type(joined_target(TARGETS)) is JoinedTarget


def test_the_target_counts_all_datasets():
    target = joined_target(TARGETS)
    assert (target.num_samples, target.first_sequence, target.last_sequence) == (6, 0, 85)
    assert target.parts == tuple(TARGETS) and target.dataset not in {t.dataset for t in TARGETS}
    assert target == joined_target(TARGETS) != joined_target(TARGETS[::-1])
    others = [changed(2, dataset="other"), changed(2, first_sequence=4), changed(2, num_samples=3), TARGETS[::-1]]
    assert len({joined_target(targets).dataset for targets in (TARGETS, *others)}) == 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "joined.order"
    with OrderFileWriter(path, 6, joined_target(TARGETS), {"by": "a test"}, "permutation") as writer:
        writer.append([5, 0, 3, 1, 4, 2])
        writer.publish()
    return path


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (changed(2, dataset="other"), "its identity of dataset 2 of 3 is second.*This run's is other"),
        (changed(3, last_sequence=2), "its last_sequence of dataset 3 of 3 is 1.*This run's is 2"),
        (changed(1, num_samples=4), "its num_samples of dataset 1 of 3 is 3.*This run's is 4"),
        ([dataclasses.replace(t, seq_length=8) for t in TARGETS], "its seq_length is 16.*This run's is 8"),
        ([dataclasses.replace(t, packing="documents") for t in TARGETS], "its packing is stream.*documents"),
        (TARGETS[::-1], "its identity of dataset 1 of 3 is first.*This run's is third"),
        (TARGETS[:2], "its number of datasets is 3.*This run's is 2"),
        ([*TARGETS, TARGETS[0]], "its number of datasets is 3.*This run's is 4"),
        (TARGETS[:1], "its number of datasets is 3.*This run's is 1"),
    ],
)
def test_a_file_for_other_datasets_is_refused_with_the_one_that_differs(path: Path, targets: list, message: str):
    assert FileOrder(path, joined_target(TARGETS)).sample_ids(0, 3).tolist() == [5, 0, 3]
    with pytest.raises(DataError, match=message):
        FileOrder(path, joined_target(targets))


def test_a_file_for_one_dataset_is_refused_for_several_and_is_as_before(tmp_path: Path):
    write_order_file(tmp_path / "one", [1, 0], TARGETS[0], {})
    header = json.loads((tmp_path / "one").read_bytes().split(b"\n")[0])
    assert header["target"] == dataclasses.asdict(TARGETS[0]) and "parts" not in header["target"]
    with pytest.raises(DataError, match=r"its number of datasets is 1.*This run's is 3"):
        FileOrder(tmp_path / "one", joined_target(TARGETS))


@pytest.mark.parametrize("parts", [5, {}, "abc", [1, 2, 3], [None] * 3, [{"parts": 5}] * 3, [[]] * 3])
@pytest.mark.parametrize("target", [TARGETS[0], joined_target(TARGETS)], ids=["one", "joined"])
def test_headers_that_make_no_sense_are_refused(parts: object, target: OrderTarget):
    said = {**json.loads(json.dumps(dataclasses.asdict(joined_target(TARGETS)))), "parts": parts}
    assert target.difference(said) is not None


def test_no_mutation_of_a_joined_order_file_is_accepted(path: Path):
    """Every byte of a small file, and random cuts, insertions and changes."""
    good, random, target = path.read_bytes(), np.random.default_rng(0), joined_target(TARGETS)
    for mutant in damaged_bytes(random, good, (1,), 200):
        path.write_bytes(mutant)
        with pytest.raises(DataError):
            FileOrder(path, target)
