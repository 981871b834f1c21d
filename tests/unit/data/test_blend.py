"""Mixtures keep their weights at every place, can be entered anywhere, and are read as megatron-core reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.utils import get_blend_from_list
from megatron.core.datasets.utils import normalize as core_normalize

from megatron_ext.data.blend import BlendView, normalize, parse_blend
from megatron_ext.data.greedy_mixture import GreedyMixture
from megatron_ext.data.order import PermutedOrder
from megatron_ext.data.spread_mixture import EpochMixture, WeightedMixture
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


def test_each_dataset_is_read_in_its_own_order():
    views = [Numbers(0, 7), Numbers(1, 50)]
    mixture = BlendView(views, WeightedMixture([1, 3]))
    seen = [mixture[int(i)].tolist() for i in mixture.sample_ids(0, 100)]
    for view in views:
        ids = [sample for name, sample in seen if name == view.name]
        assert ids == view.sample_ids(0, len(ids)).tolist()
    assert [mixture[int(i)].tolist() for i in mixture.sample_ids(33, 20)] == seen[33:53]
    assert len(mixture) == 57


def test_a_mixture_of_given_size_begins_again_with_a_warning(capsys):
    mixture = BlendView([Numbers(0, 7), Numbers(1, 50)], GreedyMixture(normalize([1, 3])), 40)
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
    assert not BlendView(views[:1], WeightedMixture([1])).has_loss_mask
    mixture = BlendView(views, WeightedMixture([1, 3]))
    assert mixture.has_loss_mask
    for sample_id in mixture.sample_ids(0, 40):
        name, local = mixture[int(sample_id)]
        mask = mixture.loss_mask(int(sample_id))
        assert (mask is None) == (name == 0)
        assert mask is None or mask.tolist() == [local % 2, 1]


def test_a_micro_batch_of_a_mixture_is_its_samples():
    mixture = BlendView([Numbers(0, 7), Masked(1, 50), Numbers(2, 9)], WeightedMixture([1, 3, 2]))
    ids = mixture.sample_ids(5, 40)
    tokens, mask = mixture.read(ids)
    for row, sample_id in enumerate(ids.tolist()):
        learned = mixture.loss_mask(sample_id)
        assert tokens[row].tolist() == mixture[sample_id].tolist()
        assert mask[row].tolist() == ([1, 1] if learned is None else learned.tolist())
    unmasked = BlendView([Numbers(0, 7), Numbers(2, 9)], EpochMixture([7, 9]))
    assert unmasked.read(unmasked.sample_ids(0, 4))[1] is None


def test_samples_say_their_dataset_and_weights_can_change():
    mixture = BlendView([Numbers(0, 7), Numbers(1, 50)], WeightedMixture([1, 3]))
    before = mixture.sample_ids(0, 400)
    assert mixture.sources_of(before).tolist() == [mixture[int(i)][0] for i in before]
    mixture.reweight(200, [1, 0])
    after = mixture.sample_ids(0, 400)
    assert after[:200].tolist() == before[:200].tolist()
    assert set(mixture.sources_of(after[200:]).tolist()) == {0}
    assert mixture.weights_at(199).tolist() == [0.25, 0.75]
    assert mixture.weights_at(200).tolist() == [1, 0]


def test_a_blend_without_weights_refuses_other_ones():
    with pytest.raises(TypeError, match="EpochMixture"):
        BlendView([Numbers(0, 7), Numbers(1, 50)], EpochMixture([7, 50])).reweight(0, [1, 1])
