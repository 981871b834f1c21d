"""The bare merging: what a ten-line definition gives, whatever the windows, the heap and the table do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext import native

pytestmark = pytest.mark.skipif(not native.COMPILED, reason="the extension is not built")

WINDOWS = [2, 3, 5, 17, 128, 129, 300]  # below, at and above the length up to which a scan is used


def naive(merges: list[tuple[int, int, int]], symbols: list[int]) -> list[int]:
    """Join the adjacent pair that stands first in the list, the leftmost of equals, until there is none."""
    ranks = {(left, right): (rank, joined) for rank, (left, right, joined) in enumerate(merges)}
    symbols = list(symbols)
    while True:
        found = [(ranks[pair][0], at) for at, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not found:
            return symbols
        at = min(found)[1]
        symbols[at : at + 2] = [ranks[symbols[at], symbols[at + 1]][1]]


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Texts of symbols over two or three letters, and merges of them in any order, sensible or not."""
    texts = list("abc"[: draw(st.integers(2, 3))])
    for _ in range(draw(st.integers(1, 12))):
        text = draw(st.sampled_from(texts)) + draw(st.sampled_from(texts))
        if len(text) <= 9 and text not in texts:
            texts.append(text)
    ids = {text: index for index, text in enumerate(texts)}
    merges = [
        (ids[t[:i]], ids[t[i:]], ids[t]) for t in texts for i in range(1, len(t)) if t[:i] in ids and t[i:] in ids
    ]
    return texts, draw(st.permutations(merges))


def merged(texts: list[str], merges: list[tuple[int, int, int]], symbols: list[int], window: int) -> list[int]:
    lengths = np.array([len(text) for text in texts], np.int32)
    table = np.array(merges, np.int32).reshape(-1, 3)
    return native.bpe.merge_symbols(lengths, table, np.array(symbols, np.int32), window).tolist()


@settings(deadline=None, max_examples=300)
@given(data=st.data(), vocabulary=vocabularies(), window=st.sampled_from(WINDOWS))
def test_merging_is_the_definition(data: st.DataObject, vocabulary: tuple[list[str], list], window: int):
    texts, merges = vocabulary
    letters = st.integers(0, sum(len(text) == 1 for text in texts) - 1)
    symbols = data.draw(st.lists(letters, max_size=60)) * data.draw(st.integers(1, 8))
    assert merged(texts, merges, symbols, window) == naive(merges, symbols)


@pytest.mark.parametrize("seed", range(20))
def test_long_texts_do_not_depend_on_the_window(seed: int):
    random = np.random.default_rng(seed)
    texts = list("abcd")
    while len(texts) < 60:
        text = random.choice(texts) + random.choice(texts)
        if len(text) <= 12 and text not in texts:
            texts.append(text)
    ids = {text: index for index, text in enumerate(texts)}
    merges = [
        (ids[t[:i]], ids[t[i:]], ids[t]) for t in texts for i in range(1, len(t)) if t[:i] in ids and t[i:] in ids
    ]
    symbols = random.integers(0, 4, 5000).tolist() + [0] * 700 + [0, 1] * 700
    whole = merged(texts, merges, symbols, 10**6)
    assert "".join(texts[i] for i in whole) == "".join(texts[i] for i in symbols)
    for window in WINDOWS:
        assert merged(texts, merges, symbols, window) == whole


def test_a_later_merge_of_the_same_pair_replaces_the_earlier():
    assert merged(["a", "b", "ab", "ba"], [(0, 1, 2), (1, 0, 3), (0, 1, 2)], [0, 1, 0], 9) == [0, 3]


@pytest.mark.parametrize("row", [(0, 1, 0), (0, 3, 2), (-1, 1, 2), (0, 0, 3)])
def test_impossible_merges_are_refused(row: tuple[int, int, int]):
    with pytest.raises(ValueError):
        merged(["a", "b", "ab"], [row], [0, 1], 9)


def test_symbols_and_windows_out_of_range_are_refused():
    with pytest.raises(ValueError):
        merged(["a", "b", "ab"], [(0, 1, 2)], [0, 3], 9)
    with pytest.raises(ValueError):
        merged(["a", "b", "ab"], [(0, 1, 2)], [0, 1], 1)
