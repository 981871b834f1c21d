"""Mixtures, sample indices and gathering: kernel, twin and megatron-core's helpers_cpp give the same values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets import helpers_cpp

from megatron_ext import native, sampling_numpy

SCANS = native.bpe.blend_scans() if native.COMPILED else []
needs_compiler = pytest.mark.skipif(not native.COMPILED, reason="the extension is not built")
BOTH = pytest.mark.parametrize("module", [pytest.param(native, marks=needs_compiler), sampling_numpy])


def core_blend(weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    dataset, sample = np.zeros(size, np.int16), np.zeros(size, np.int64)
    helpers_cpp.build_blending_indices(dataset, sample, weights, len(weights), size, False)
    return dataset, sample


def core_blend_all(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dataset, sample = np.zeros(sizes.sum(), np.int16), np.zeros(sizes.sum(), np.int64)
    helpers_cpp.build_exhaustive_blending_indices(dataset, sample, sizes, len(sizes))
    return dataset, sample


def assert_same(found: tuple, wanted: tuple) -> None:
    for ours, theirs in zip(found, wanted, strict=False):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@settings(deadline=None, max_examples=50)
@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), cut=st.integers(0, 200))
def test_blend_is_its_twin_and_megatron_cores_and_can_be_continued(weights: list[float], cut: int):
    normal = np.array(weights) / np.sum(weights)
    zeros = np.zeros(len(weights), np.int64)
    whole = native.blend(normal, zeros, 0, 300)
    assert_same(whole, sampling_numpy.blend(normal, zeros, 0, 300))
    assert_same(whole, core_blend(normal, 300))
    first = native.blend(normal, zeros, 0, cut)
    second = native.blend(normal, first[2], cut, 300 - cut)
    for part in (0, 1):
        np.testing.assert_array_equal(np.concatenate([first[part], second[part]]), whole[part])
    assert not zeros.any()


def weights_of(kind: str, count: int) -> np.ndarray:
    random = np.random.default_rng(count)
    weights = {
        "spread": random.dirichlet(np.ones(count)),
        "heavy": random.pareto(0.5, count),
        "equal": np.ones(count),
        "few values": random.integers(1, 4, count).astype(float),
        "zeros": np.where(random.random(count) < 0.5, 0.0, 1.0),
    }[kind]
    return weights / weights.sum()


@pytest.mark.parametrize("kind", ["spread", "heavy", "equal", "few values", "zeros"])
@pytest.mark.parametrize("count", [13, 64, 65, 150, 1000, 10_000])
@pytest.mark.parametrize("scan", SCANS)
def test_every_scan_of_many_datasets_is_megatron_cores_order(scan: str, count: int, kind: str):
    weights, size = weights_of(kind, count), 20_000 if count <= 1000 else 700
    zeros = np.zeros(count, np.int64)
    wanted = core_blend(weights, size)
    assert_same(native.blend(weights, zeros, 0, size, scan), wanted)
    cut = size // 3
    after = native.blend(weights, zeros, 0, cut, scan)[2]
    assert_same(native.blend(weights, after, cut, size - cut, scan), tuple(part[cut:] for part in wanted))


@needs_compiler
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(60, 200), start=st.integers(0, 2**52))
def test_blends_with_any_counts_at_any_place_are_the_twins(seed: int, count: int, start: int):
    """Counts that no blend would have led to, negative weights and places far away change nothing."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=count) if seed % 5 == 0 else random.random(count)
    drawn = (weights * start).astype(np.int64) + random.integers(0, 30, count)
    assert_same(native.blend(weights, drawn, start, 150), sampling_numpy.blend(weights, drawn, start, 150))


@needs_compiler
@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=90), cut=st.integers(0, 10**6))
def test_blend_all_is_its_twin_and_megatron_cores_and_can_be_continued(sizes: list[int], cut: int):
    array, zeros = np.array(sizes, np.int64), np.zeros(len(sizes), np.int64)
    total, cut = sum(sizes), cut % (sum(sizes) + 1)
    wanted = core_blend_all(array)
    assert_same(sampling_numpy.blend_all(array, zeros, 0, total), wanted)
    for scan in SCANS:
        first = native.blend_all(array, zeros, 0, cut, scan)
        second = native.blend_all(array, first[2], cut, total - cut, scan)
        assert_same(tuple(np.concatenate(pair) for pair in zip(first[:2], second[:2], strict=True)), wanted)
        np.testing.assert_array_equal(second[2], array)


@pytest.mark.parametrize("scan", SCANS)
def test_blend_all_of_many_datasets_is_megatron_cores(scan: str):
    sizes = np.random.default_rng(0).integers(1, 60, 700)
    zeros = np.zeros(len(sizes), np.int64)
    assert_same(native.blend_all(sizes, zeros, 0, int(sizes.sum()), scan), core_blend_all(sizes))


def test_blend_all_passes_over_empty_datasets():
    sizes = np.array([0, 2, 0, 1])
    for module in (native, sampling_numpy):
        dataset, sample, _ = module.blend_all(sizes, np.zeros(4, np.int64), 0, 3)
        assert sorted(zip(dataset.tolist(), sample.tolist(), strict=True)) == [(1, 0), (1, 1), (3, 0)]


@BOTH
def test_blends_that_cannot_be_are_refused(module):
    zeros = np.zeros(2, np.int64)
    for arguments in (
        (np.array([0.5, 0.5]), np.zeros(3, np.int64), 0, 1),
        (np.array([0.5, np.nan]), zeros, 0, 1),
        (np.array([0.5, np.inf]), zeros, 0, 1),
        (np.array([0.5, 0.5]), zeros, -1, 1),
        (np.array([]), np.array([], np.int64), 0, 1),
        (np.ones(32768), np.zeros(32768, np.int64), 0, 1),
    ):
        with pytest.raises(ValueError, match="blend"):
            module.blend(*arguments)
    for drawn, count in ((zeros, 4), (np.array([2, 0]), 1), (np.array([-1, 0]), 1)):
        with pytest.raises(ValueError, match="blend"):
            module.blend_all(np.array([1, 2]), drawn, 0, count)


@needs_compiler
def test_a_scan_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="scan"):
        native.blend(np.array([1.0]), np.zeros(1, np.int64), 0, 1, "none")


@settings(deadline=None, max_examples=100)
@given(data=st.data(), seq_length=st.integers(1, 12))
def test_the_sample_index_is_megatron_cores(data: st.DataObject, seq_length: int):
    lengths = np.array(data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=15)), np.int32)
    epochs = data.draw(st.integers(1, 3))
    documents = np.array(data.draw(st.permutations(list(range(len(lengths))) * epochs)), np.int32)
    if lengths.sum() * epochs <= seq_length:
        return
    for wide in (False, True):
        core = helpers_cpp.build_sample_idx_int64 if wide else helpers_cpp.build_sample_idx_int32
        wanted = core(lengths, documents, seq_length, epochs, int(lengths.sum()), True, 1)
        for module in (native, sampling_numpy):
            for drawn in (documents, documents.astype(np.int64)):
                found = module.sample_index(lengths, drawn, seq_length, wide=wide)
                assert found.dtype == wanted.dtype
                np.testing.assert_array_equal(found, wanted)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seq_length=st.integers(1, 9))
def test_the_rows_of_blocks_are_the_rows_of_the_whole(data: st.DataObject, seq_length: int):
    lengths = np.array(data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=20)), np.int32)
    documents = np.arange(len(lengths))
    cut = data.draw(st.integers(0, len(lengths)))
    tokens = int(lengths[:cut].sum())
    for module in (native, sampling_numpy):
        whole = module.sample_index(lengths, documents, seq_length, wide=True)
        parts = [
            module.sample_index(lengths, documents[:cut], seq_length, wide=True),
            module.sample_index(lengths, documents[cut:], seq_length, cut, tokens, True),
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@BOTH
def test_the_sample_index_holds_beyond_2_to_40_tokens(module):
    lengths, seq_length = np.full(3, 2**31 - 1, np.int32), 2**30
    documents = np.tile(np.arange(3, dtype=np.int32), 200)
    found = module.sample_index(lengths, documents, seq_length, wide=True)
    wanted = helpers_cpp.build_sample_idx_int64(
        lengths, documents, seq_length, 200, int(lengths.sum(dtype=np.int64)), True, 1
    )
    np.testing.assert_array_equal(found, wanted)
    assert len(found) > 2**40 // seq_length
    whole = found[:, 0] * (2**31 - 1) + found[:, 1]
    np.testing.assert_array_equal(whole, np.arange(len(found)) * seq_length)


@BOTH
def test_the_sample_index_holds_beyond_2_to_31_documents(module):
    before, tokens = 2**31 + 5, 2**42 + 1
    rows = module.sample_index(np.array([10], np.int32), np.zeros(4, np.int64), 8, before, tokens, True)
    assert rows.tolist() == [[before, 7], [before + 1, 5], [before + 2, 3], [before + 3, 1], [before + 3, 9]]
    with pytest.raises(ValueError, match="int64 rows"):
        module.sample_index(np.array([10], np.int32), np.zeros(4, np.int64), 8, 2**31 - 4, tokens, False)


@BOTH
def test_a_sample_index_of_damaged_documents_is_refused(module):
    for lengths, documents, error in (([3], [1], IndexError), ([3], [-1], IndexError), ([3, -1], [0, 1], ValueError)):
        with pytest.raises(error):
            module.sample_index(np.array(lengths, np.int32), np.array(documents), 2)
    with pytest.raises(ValueError):
        module.sample_index(np.array([3], np.int32), np.array([0]), 0)
    with pytest.raises(ValueError):
        module.sample_index(np.array([3], np.int32), np.array([0], np.int16), 1)


def reversed_bits(place: int) -> int:
    return int(f"{place:053b}"[::-1], 2)


def thresholds(weights: list[float]) -> np.ndarray:
    ends = np.floor(np.cumsum(weights) / np.sum(weights) * 2.0**53).astype(np.int64)
    return np.concatenate([[0], ends[:-1], [1 << 53]])


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 700), values=st.lists(st.integers(0, 1 << 53), max_size=9))
def test_spread_counts_count_points_below_thresholds(place: int, values: list[int]):
    wanted = [sum(reversed_bits(n) < value for n in range(place)) for value in values]
    for module in (native, sampling_numpy):
        assert module.spread_counts(place, np.array(values, np.int64)).tolist() == wanted


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any),
    start=st.one_of(st.integers(0, 400), st.integers(2**31, 2**52), st.just((1 << 53) - 150)),
)
def test_spread_is_its_twin_and_ranks_by_its_counts(weights: list[int], start: int):
    edges = thresholds(weights)
    dataset, rank = native.spread(edges, start, 150)
    assert_same((dataset, rank), sampling_numpy.spread(edges, start, 150))
    points = np.array([reversed_bits(start + n) for n in range(150)])
    assert (edges[dataset] <= points).all() and (points < edges[dataset + 1]).all()
    before = np.diff(native.spread_counts(start, edges))
    for name in set(dataset.tolist()):
        assert rank[dataset == name].tolist() == [before[name] + i for i in range(np.count_nonzero(dataset == name))]
    np.testing.assert_array_equal(
        np.diff(native.spread_counts(start + 150, edges)) - before, np.bincount(dataset, minlength=len(weights))
    )


@pytest.mark.parametrize("module", [native, sampling_numpy])
def test_spread_refuses_what_it_cannot_count(module: object):
    end = 1 << 53
    for edges in ([0], [], [1, end], [0, end - 1], [0, 5, 4, end]):
        with pytest.raises(ValueError, match="spread"):
            module.spread(np.array(edges, np.int64), 0, 1)
    for start, count in ((-1, 1), (0, -1), (end, 1), (end - 5, 6)):
        with pytest.raises(ValueError, match="spread"):
            module.spread(np.array([0, end]), start, count)
    for place, value in ((-1, 0), (end + 1, 0), (0, -1), (0, end + 1)):
        with pytest.raises(ValueError, match="spread"):
            module.spread_counts(place, np.array([value]))
