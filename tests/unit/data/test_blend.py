"""Mixtures keep their weights at every place, can be entered anywhere, and are read as megatron-core reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.utils import get_blend_from_list
from megatron.core.datasets.utils import normalize as core_normalize

from megatron_ext.data import blend
from megatron_ext.data.blend import BlendIndex, BlendView, normalize, parse_blend
from megatron_ext.data.order import PermutedOrder
from megatron_ext.data.views import View
from megatron_ext.errors import DataError


class Numbers(View):
    """Sample i of view v is the row (v, i)."""

    def __init__(self, name: int, size: int) -> None:
        self.name, self.size, self.seq_length, self.num_tokens, self.remainder_tokens = name, size, 1, 2 * size, 1
        self.order = PermutedOrder(size, str(name))

    def __len__(self) -> int:
        return self.size

    def sample_ids(self, start: int, count: int) -> np.ndarray:
        return self.order.sample_ids(start, count)

    def __getitem__(self, sample_id: int) -> np.ndarray:
        return np.array([self.name, sample_id])

    def token_ranges(self, sample_id: int) -> list:
        return []


@pytest.mark.parametrize(
    "words", [["p"], ["p", "q"], ["p", "q", "r"], ["0.3", "p", "0.7", "q"], ["1", "p"], [" p ", "q"]]
)
def test_words_are_read_as_megatron_core_reads_them(words: list[str]):
    assert parse_blend(words, "--data-path") == get_blend_from_list(words)


@pytest.mark.parametrize(
    "words",
    [["0.3", "p", "q", "0.7"], ["0.3", "p", "0.7"], ["0", "p"], ["-1", "p"], ["nan", "p"], ["p", "3", "q", "4"]],
)
def test_words_that_cannot_be_read_are_refused_with_the_flag(words: list[str]):
    with pytest.raises(DataError, match="--data-path"):
        parse_blend(words, "--data-path")


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=10))
def test_weights_are_normalized_as_in_megatron_core(weights: list[float]):
    assert normalize(weights).tolist() == core_normalize(weights)


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=5), start=st.integers(0, 200), count=st.integers(0, 99))
def test_any_part_of_the_mixture_is_that_part(weights: list[int], start: int, count: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blend, "_BLOCK", 16)
        whole = BlendIndex(normalize(weights)).places(0, 300)
        part = BlendIndex(normalize(weights)).places(start, count)
    for found, wanted in zip(part, whole, strict=True):
        np.testing.assert_array_equal(found, wanted[start : start + count])


def test_blocks_join_without_a_seam():
    from megatron_ext import native

    weights, size = normalize([3, 1, 2]), 3 * (1 << 16)
    dataset, place, _ = native.blend(weights, np.zeros(3, np.int64), 0, size)
    index = BlendIndex(weights)
    for start in (100_000, 0, 65_530, 131_000):
        found = index.places(start, 5000)
        np.testing.assert_array_equal(found[0], dataset[start : start + 5000])
        np.testing.assert_array_equal(found[1], place[start : start + 5000])


def test_shares_are_kept_at_every_place():
    weights = normalize([0.5, 0.3, 0.2])
    dataset, _ = BlendIndex(weights).places(0, 10_000)
    counts = np.cumsum(dataset[:, None] == np.arange(3), axis=0)
    places = np.arange(1, 10_001)[:, None]
    assert np.abs(counts - weights * places).max() <= 1.0 + 1e-9


def test_each_dataset_is_read_in_its_own_order():
    views = [Numbers(0, 7), Numbers(1, 50)]
    mixture = BlendView(views, normalize([1, 3]))
    seen = [mixture[int(i)].tolist() for i in mixture.sample_ids(0, 100)]
    for view in views:
        ids = [sample for name, sample in seen if name == view.name]
        assert ids == view.sample_ids(0, len(ids)).tolist()
    assert [mixture[int(i)].tolist() for i in mixture.sample_ids(33, 20)] == seen[33:53]
    assert len(mixture) == 57


def test_a_mixture_of_given_size_begins_again_with_a_warning(capsys):
    mixture = BlendView([Numbers(0, 7), Numbers(1, 50)], normalize([1, 3]), 40)
    whole = mixture.sample_ids(0, 40)
    np.testing.assert_array_equal(mixture.sample_ids(30, 20), np.concatenate([whole[30:], whole[:10]]))
    assert "begins again" in capsys.readouterr().err
    assert len(mixture) == 40


class Masked(Numbers):
    """Token i of sample i is not learned."""

    has_loss_mask = True

    def loss_mask(self, sample_id: int) -> np.ndarray:
        return np.array([sample_id % 2, 1], np.uint8)


def test_masks_come_with_the_samples_of_the_datasets_that_have_them():
    views = [Numbers(0, 7), Masked(1, 50)]
    assert not BlendView(views[:1], normalize([1])).has_loss_mask
    mixture = BlendView(views, normalize([1, 3]))
    assert mixture.has_loss_mask
    for sample_id in mixture.sample_ids(0, 40):
        name, local = mixture[int(sample_id)]
        mask = mixture.loss_mask(int(sample_id))
        assert (mask is None) == (name == 0)
        assert mask is None or mask.tolist() == [local % 2, 1]


def test_a_micro_batch_of_a_mixture_is_its_samples():
    mixture = BlendView([Numbers(0, 7), Masked(1, 50), Numbers(2, 9)], normalize([1, 3, 2]))
    ids = mixture.sample_ids(5, 40)
    tokens, mask = mixture.read(ids)
    for row, sample_id in enumerate(ids.tolist()):
        learned = mixture.loss_mask(sample_id)
        assert tokens[row].tolist() == mixture[sample_id].tolist()
        assert mask[row].tolist() == ([1, 1] if learned is None else learned.tolist())
    unmasked = BlendView([Numbers(0, 7), Numbers(2, 9)], normalize([1, 1]))
    assert unmasked.read(unmasked.sample_ids(0, 4))[1] is None


def test_ten_thousand_datasets_keep_their_shares():
    weights = normalize(np.random.default_rng(0).pareto(1.0, 10_000) + 0.01)
    datasets, places = BlendIndex(weights).places(60_000, 10_000)
    assert datasets.max() > 9000
    counts = np.bincount(BlendIndex(weights).places(0, 70_000)[0], minlength=10_000)
    assert (counts - weights * 70_000).max() <= 1 + 1e-6
    assert (places <= weights[datasets] * 70_000 + 1).all()
