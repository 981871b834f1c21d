"""--dataset-order megatron is megatron-core's GPTDataset, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.megatron_order import MegatronOrder, MegatronView, build_indices
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError
from tests.unit.data.oracle import core_datasets, core_rows
from tests.unit.data.small import make_dataset, random_documents, write_masked


def rows(view: MegatronView, count: int) -> np.ndarray:
    return np.stack([view[int(sample_id)] for sample_id in view.sample_ids(0, count)])


# 60 documents of about 15 tokens make about 45 samples of 16 tokens in the training part: from a part of an epoch to
# several, with the last one above and below the share at which it is shuffled apart.
@pytest.mark.parametrize("num_samples", [1, 20, 45, 50, 60, 80, 88, 93, 100, 333])
@pytest.mark.parametrize("seed", [1, 1234])
def test_samples_are_megatron_cores_over_any_number_of_epochs(num_samples: int, seed: int, tmp_path: Path):
    prefix = make_dataset(tmp_path, seed=seed, count=60)
    core = core_datasets(
        tmp_path / "cache", (num_samples, 1, 1), blend=([prefix], None), split="80,10,10", random_seed=seed
    )[0]
    view = MegatronView(IndexedDataset(prefix), Span(0, 48), MegatronOrder(seed, 16, num_samples))
    assert len(view) == len(core)
    np.testing.assert_array_equal(rows(view, len(view)), core_rows(core, len(core)))


def test_one_epoch_when_no_number_is_asked_for(tmp_path: Path):
    view = MegatronView(IndexedDataset(make_dataset(tmp_path)), Span(0, 200), MegatronOrder(1, 16, None))
    assert len(view) == (view.num_tokens - 1) // 16
    assert len(view) * 16 + view.remainder_tokens == view.num_tokens


def test_beyond_the_end_the_order_begins_again_with_a_warning(tmp_path: Path, capsys):
    view = MegatronView(IndexedDataset(make_dataset(tmp_path)), Span(0, 200), MegatronOrder(1, 16, None))
    ids = view.sample_ids(len(view) - 1, 3)
    assert ids.tolist() == [len(view) - 1, 0, 1]
    assert "begins again" in capsys.readouterr().err


def test_the_cache_gives_the_same_samples_and_changes_with_what_it_is_for(tmp_path: Path):
    store = IndexedDataset(make_dataset(tmp_path))
    cache = tmp_path / "cache" / "deep"
    plain = rows(MegatronView(store, Span(0, 100), MegatronOrder(1, 16, 300)), 300)
    for _ in range(2):
        view = MegatronView(store, Span(0, 100), MegatronOrder(1, 16, 300, cache))
        np.testing.assert_array_equal(rows(view, 300), plain)
        assert len(list(cache.iterdir())) == 3
    MegatronView(store, Span(0, 100), MegatronOrder(2, 16, 300, cache))
    MegatronView(store, Span(0, 101), MegatronOrder(1, 16, 300, cache))
    MegatronView(IndexedDataset(make_dataset(tmp_path, "other", 7)), Span(0, 100), MegatronOrder(1, 16, 300, cache))
    assert len(list(cache.iterdir())) == 12


def test_a_damaged_cache_is_named(tmp_path: Path):
    store = IndexedDataset(make_dataset(tmp_path))
    order = MegatronOrder(1, 16, 300, tmp_path / "cache")
    MegatronView(store, Span(0, 100), order)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="cache"):
        MegatronView(store, Span(0, 100), order)


def test_a_part_shorter_than_a_sample_is_refused(tmp_path: Path):
    store = IndexedDataset(make_dataset(tmp_path))
    with pytest.raises(DataError, match="One sample"):
        MegatronView(store, Span(0, 2), MegatronOrder(1, 1000, 10))


def test_the_mask_goes_with_its_tokens(tmp_path: Path):
    """A token is learned here when its id is even, so that each sample's tokens tell its mask."""
    documents = random_documents(0, 60)
    write_masked(tmp_path / "data", documents, [(document % 2 == 0).astype(np.uint8) for document in documents])
    view = MegatronView(IndexedDataset(tmp_path / "data"), Span(5, 48), MegatronOrder(1, 16, 100))
    assert view.has_loss_mask
    for sample_id in range(len(view)):
        mask = view.loss_mask(sample_id)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, view[sample_id] % 2 == 0)
    plain = MegatronView(IndexedDataset(make_dataset(tmp_path, "plain")), Span(0, 60), MegatronOrder(1, 16, 10))
    assert not plain.has_loss_mask and plain.loss_mask(0) is None


def test_a_micro_batch_is_its_samples_and_damage_is_an_error_where_it_is_read(tmp_path: Path):
    documents = random_documents(0, 60)
    write_masked(tmp_path / "data", documents, [(document % 2 == 0).astype(np.uint8) for document in documents])
    store = IndexedDataset(tmp_path / "data")
    view = MegatronView(store, Span(5, 48), MegatronOrder(1, 16, 100))
    ids = np.random.default_rng(0).integers(0, len(view), 12)
    tokens, mask = view.read(ids)
    np.testing.assert_array_equal(tokens, [view[int(i)] for i in ids])
    np.testing.assert_array_equal(mask, tokens % 2 == 0)
    store.lengths = store.lengths.copy()
    store.lengths[5:48] += 1
    with pytest.raises(DataError, match="damaged"):
        view.read(ids)


def test_documents_beyond_int32_are_not_wrapped():
    span = Span(2**31 + 3, 2**31 + 9)
    documents, _ = build_indices(span, MegatronOrder(1, 4, None), 100)
    assert documents.dtype == np.int64
    assert sorted(documents.tolist()) == list(range(span.first, span.last))
