"""The sort outside of memory is numpy's stable sort, whatever the values and the room."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.curriculum import bucket_sort, sort_keys
from megatron_ext.data.curriculum.bucket_sort import MAX_SAMPLES, placed, refuse_too_many, sorted_apart, sorted_samples
from megatron_ext.data.curriculum.sort_keys import KeyFile
from megatron_ext.errors import DataError

VALUES = {
    "spread": lambda random, n: random.integers(0, 2**32, n),
    "narrow": lambda random, n: 10**9 + random.integers(0, 200_000, n),
    "few": lambda random, n: random.integers(0, 3, n),
    "one": lambda random, n: np.full(n, 7),
    "mostly one": lambda random, n: np.where(random.random(n) < 0.9, 2**31, random.integers(0, 2**32, n)),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("largest_range", [1, 100, 10**6])
def test_it_is_a_stable_sort(kind: str, largest_range: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sort_keys, "_BLOCK", 333)
    keys = VALUES[kind](np.random.default_rng(0), 2000).astype(np.uint32)
    with KeyFile(tmp_path) as file:
        file.append(keys)
        samples = np.concatenate(list(sorted_samples(file, tmp_path, largest_range)))
    assert np.array_equal(samples, np.argsort(keys, kind="stable"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_datasets_are_sorted_one_after_the_other(block: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sort_keys, "_BLOCK", block)
    keys, starts = np.random.default_rng(0).integers(0, 9, 60).astype(np.uint32), (0, 20, 21, 60)
    with KeyFile(tmp_path) as file:
        file.append(keys)
        samples = np.concatenate(list(sorted_apart(file, starts, tmp_path)))
        assert np.array_equal(file.of(samples), keys[samples])  # the file is as before
    wanted = [first + np.argsort(keys[first:last], kind="stable") for first, last in pairwise(starts)]
    assert np.array_equal(samples, np.concatenate(wanted))


@given(st.permutations(range(12)), st.integers(0, 1000))
def test_placed_inverts_places(places: list[int], first: int):
    samples = np.arange(12, dtype=np.uint64) + np.uint64(50)
    pairs = ((np.array(places, np.uint64) + np.uint64(first)) << np.uint64(32)) | samples
    assert placed(pairs, first).tolist() == [50 + places.index(i) for i in range(12)]


def test_more_samples_than_fit_are_refused():
    refuse_too_many(MAX_SAMPLES)
    with pytest.raises(DataError, match="4294967296 samples"):
        refuse_too_many(2**32)
    assert bucket_sort.MAX_SAMPLES < 2**32  # a product of two counts must fit in 64 bits
