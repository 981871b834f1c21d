"""Arrays of rows against plain Python lists of rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.rows.spans import Segment
from megatron_ext.data.rows.token_rows import TokenRows, rows_of_segments, rows_of_texts
from tests.unit.data.rows.word_tokenizer import WordTokenizer

Row = list[tuple[int, int]]  # (id, code)
ROWS = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=5), max_size=6)


def as_arrays(rows: list[Row], with_codes: bool = True) -> TokenRows:
    flat = [token for row in rows for token in row]
    ids = np.array([index for index, _ in flat], np.int32)
    codes = np.array([code for _, code in flat], np.uint8)
    return TokenRows(ids, np.array([len(row) for row in rows], np.int64), codes if with_codes else None)


def as_lists(rows: TokenRows) -> list[Row]:
    codes = np.ones(len(rows.ids), np.uint8) if rows.codes is None else rows.codes
    assert len(codes) == len(rows.ids) == rows.lengths.sum()
    assert rows.ids.dtype == np.int32
    pairs = list(zip(rows.ids.tolist(), codes.tolist(), strict=True))
    ends = np.cumsum(rows.lengths).tolist()
    return [pairs[end - length : end] for end, length in zip(ends, rows.lengths.tolist(), strict=True)]


def learned_whole(rows: list[Row]) -> list[Row]:
    return [[(index, 1) for index, _ in row] for row in rows]


@given(ROWS, st.integers(2, 6), st.booleans())
def test_cutting_shortens_only_longer_rows_and_ends_them(rows: list[Row], limit: int, with_codes: bool):
    reference = rows if with_codes else learned_whole(rows)
    expected = [[*row[: limit - 1], (99, 1)] if len(row) > limit else row for row in reference]
    assert as_lists(as_arrays(rows, with_codes).cut(limit, 99)) == expected


@given(ROWS, st.none() | st.integers(2, 6))
def test_learned_tokens_are_counted_without_the_forced_end(rows: list[Row], limit: int | None):
    kept = [row if limit is None or len(row) <= limit else row[: limit - 1] for row in rows]
    arrays = as_arrays(rows)
    assert arrays.learned(limit).tolist() == [sum(code > 0 for _, code in row) for row in kept]
    assert as_arrays(rows, with_codes=False).learned(limit).tolist() == [len(row) for row in kept]
    assert arrays.over(limit).tolist() == [limit is not None and len(row) > limit for row in rows]


@given(ROWS, st.randoms(use_true_random=False), st.booleans())
def test_chosen_rows_stay_whole(rows: list[Row], random: np.random.Generator, with_codes: bool):
    keep = [random.random() < 0.5 for _ in rows]
    reference = rows if with_codes else learned_whole(rows)
    chosen = as_arrays(rows, with_codes).select(np.array(keep, np.bool_))
    assert as_lists(chosen) == [row for row, kept in zip(reference, keep, strict=True) if kept]


@given(ROWS, st.lists(st.just(50), max_size=2), st.lists(st.integers(60, 61), max_size=2), st.booleans())
def test_ends_are_put_around_rows_that_have_tokens(
    rows: list[Row], before: list[int], after: list[int], with_codes: bool
):
    reference = rows if with_codes else learned_whole(rows)
    expected = [[*((i, 1) for i in before), *row, *((i, 1) for i in after)] if row else [] for row in reference]
    assert as_lists(as_arrays(rows, with_codes).with_ends(before, after)) == expected


SEGMENTS = st.lists(
    st.lists(
        st.builds(Segment, st.sampled_from(["a", "a b", "文 字", " "]), st.integers(0, 2), st.just(False))
        | st.builds(Segment, st.sampled_from(["<x>", "bos"]), st.integers(0, 2), st.just(True)),
        max_size=4,
    ),
    max_size=5,
)


@given(SEGMENTS)
def test_segments_become_the_tokens_of_their_texts_with_their_codes(rows: list[list[Segment]]):
    tokenizer = WordTokenizer("<x>")
    special = {"<x>": tokenizer.token_id("<x>"), "bos": None}  # a bos that the tokenizer does not have is left out
    expected: list[Row] = []
    for row in rows:
        expected.append([])
        for segment in row:
            ids = tokenizer.encode_plain_batch([segment.text]).ids.tolist()
            if segment.special:
                ids = [index for index in [special[segment.text]] if index is not None]
            expected[-1] += [(index, segment.learn) for index in ids]
    assert as_lists(rows_of_segments(rows, tokenizer, special)) == expected


@given(st.lists(st.sampled_from(["", "a", "a b"])))
def test_an_empty_text_is_an_empty_row(texts: list[str]):
    tokenizer = WordTokenizer(bos="<s>")
    rows = rows_of_texts(texts, tokenizer)
    assert rows.lengths.tolist() == [len(tokenizer.encode(text)) if text else 0 for text in texts]
    assert rows.ids.tolist() == [index for text in texts if text for index in tokenizer.encode(text)]
