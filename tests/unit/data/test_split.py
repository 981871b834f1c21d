"""Splits are megatron-core's, to the sequence."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron_ext.data.split import span_of, split_bounds
from megatron_ext.errors import DataError

SHARES = st.lists(st.integers(0, 1000) | st.floats(0, 1000).map(lambda x: round(x, 3)), min_size=1, max_size=3)


@given(shares=SHARES.filter(lambda shares: sum(shares) > 0), separator=st.sampled_from([",", ", ", "/"]))
def test_bounds_are_megatron_cores(shares: list[float], separator: str):
    text = separator.join(f"{share:f}" for share in shares)
    assert split_bounds(text) == convert_split_vector_to_split_matrix(parse_and_normalize_split(text))


@given(shares=SHARES.filter(lambda shares: sum(shares) > 0), size=st.integers(0, 10**9))
def test_parts_cover_every_sequence_once(shares: list[float], size: int):
    spans = [span_of(bounds, size) for bounds in split_bounds(",".join(f"{share:f}" for share in shares)) if bounds]
    assert spans[0].first == 0
    assert spans[-1].last == size
    assert all(left.last == right.first for left, right in itertools.pairwise(spans))


def test_the_default_split():
    bounds = split_bounds("969, 30, 1")
    assert [span_of(part, 1000) for part in bounds if part] == [
        span_of((0.0, 0.969), 1000), span_of((0.969, 0.999), 1000), span_of((0.999, 1.0), 1000)
    ]  # fmt: skip
    assert sum(span_of(part, 1000).size for part in bounds if part) == 1000


@pytest.mark.parametrize("text", ["", "0,0,0", "1,2,3,4", "a,b", "-1,2", "nan", "inf,1", "1;2"])
def test_unreadable_splits_are_refused(text: str):
    with pytest.raises(DataError, match="--split"):
        split_bounds(text)
