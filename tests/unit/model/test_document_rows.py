"""Documents are cut into groups of similar length, each in the order they came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.model.document_rows import SHORTEST_SHARE, similar_lengths

FALLING = st.lists(st.integers(1, 4096), min_size=1, max_size=60).map(lambda lengths: sorted(lengths, reverse=True))


@given(FALLING)
def test_groups_hold_every_document_once_and_little_padding(lengths: list[int]):
    groups = similar_lengths(lengths)
    assert [index for first, last in groups for index in range(first, last)] == list(range(len(lengths)))
    rows = sum((last - first) * lengths[first] for first, last in groups)
    assert SHORTEST_SHARE * rows <= sum(lengths)


@given(FALLING)
def test_a_group_ends_only_where_the_next_document_is_too_short_for_it(lengths: list[int]):
    for first, last in similar_lengths(lengths)[:-1]:
        assert lengths[last] < SHORTEST_SHARE * lengths[first] <= lengths[last - 1]
