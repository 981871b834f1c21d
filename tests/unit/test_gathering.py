"""A micro-batch is gathered exactly: kernel and twin give what slices of the tokens give, and read nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext import native, sampling_numpy

MODULES = [native, sampling_numpy]
BOTH = pytest.mark.parametrize("module", MODULES)
DTYPES = st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "int64"])
PAD = 77


def batch(height: int, width: int, with_mask: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    return np.full((height, width), -9, np.int64), np.full((height, width), 9, np.uint8) if with_mask else None


def extent_of(tokens: np.ndarray) -> tuple[int, int]:
    return (min(0, int(tokens.min())), max(-1, int(tokens.max()))) if tokens.size else (0, -1)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), dtype=DTYPES, masked=st.booleans(), wants_mask=st.booleans())
def test_windows_are_slices_with_pads_in_the_rows_asked_for(
    data: st.DataObject, dtype: str, masked: bool, wants_mask: bool
):
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    tokens = random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, 40, endpoint=True, dtype=dtype)
    stored = random.integers(0, 3, 40).astype(np.uint8) if masked else None
    count, height, width = data.draw(st.integers(0, 4)), 6, 7
    begins = random.integers(0, 41, count)
    ends = np.minimum(begins + random.integers(0, width + 1, count), 40)
    rows = random.permutation(height)[:count]
    wanted, wanted_mask = batch(height, width)
    for begin, end, row in zip(begins, ends, rows, strict=True):
        wanted[row], wanted_mask[row] = PAD, 0
        wanted[row, : end - begin] = tokens[begin:end]
        wanted_mask[row, : end - begin] = 1 if stored is None else stored[begin:end]
    seen = np.concatenate([tokens[b:e] for b, e in zip(begins, ends, strict=True)]) if count else tokens[:0]
    for module in MODULES:
        for with_extent in (False, True):
            found, mask = batch(height, width, wants_mask)
            target = (rows, found, mask)
            extent = module.gather_windows((tokens, stored), begins, ends, PAD, target, with_extent)
            assert extent == (extent_of(seen) if with_extent else (0, -1))
            np.testing.assert_array_equal(found, wanted)
            assert mask is None or np.array_equal(mask, wanted_mask)


def stored_documents(lengths: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens = np.arange(lengths.sum()).astype(dtype)
    pointers = (np.cumsum(lengths) - lengths) * tokens.itemsize
    raw = b"xy" + lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes()  # as unaligned as in an index file
    middle = 2 + 4 * len(lengths)
    whole = np.frombuffer(raw, np.uint8)
    return tokens, whole[2:middle].view("<i4"), whole[middle:].view("<i8")


@settings(deadline=None, max_examples=80)
@given(data=st.data(), dtype=DTYPES, seq_length=st.integers(1, 9), wide=st.booleans(), masked=st.booleans())
def test_samples_are_cut_from_the_documents_laid_end_to_end(
    data: st.DataObject, dtype: str, seq_length: int, wide: bool, masked: bool
):
    lengths = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12)), np.int64)
    tokens, stored_lengths, pointers = stored_documents(lengths, dtype)
    codes = (np.arange(len(tokens)) % 3).astype(np.uint8) if masked else None
    drawn = np.array(data.draw(st.permutations(range(len(lengths)))), np.int64 if wide else np.int32)
    index = native.sample_index(stored_lengths, drawn, seq_length, wide=wide)
    starts = np.cumsum(lengths) - lengths
    places = np.concatenate([np.arange(starts[d], starts[d] + lengths[d]) for d in drawn])
    count = max(0, (len(places) - 1) // seq_length)
    samples = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=4)) if count else [], np.int64)
    rows = np.arange(len(samples))[::-1].copy()
    for module in MODULES:
        found, mask = batch(len(samples), seq_length + 1)
        order = (stored_lengths, pointers, drawn, index)
        module.gather_documents((tokens, codes), order, samples, (rows, found, mask), True)
        for sample, row in zip(samples, rows, strict=True):
            cut = places[sample * seq_length : (sample + 1) * seq_length + 1]
            np.testing.assert_array_equal(found[row], tokens[cut])
            np.testing.assert_array_equal(mask[row], np.ones_like(cut) if codes is None else codes[cut])


@BOTH
@pytest.mark.parametrize(
    ("begins", "ends", "rows", "error"),
    [
        ([-1], [2], [0], IndexError),
        ([3], [2], [0], IndexError),
        ([9], [11], [0], IndexError),
        ([2**62], [2**62 + 2], [0], IndexError),
        ([0], [5], [0], IndexError),
        ([0], [4], [2], IndexError),
        ([0], [4], [-1], IndexError),
        ([0, 1], [4], [0], ValueError),
        ([0], [4], [0, 1], ValueError),
    ],
)
def test_windows_outside_the_tokens_or_the_batch_are_refused(
    module: Any, begins: list, ends: list, rows: list, error: type
):
    tokens, mask = batch(2, 4)
    source = (np.arange(10, dtype=np.uint16), None)
    target = (np.array(rows), tokens, mask)
    with pytest.raises(error, match="gather"):
        module.gather_windows(source, np.array(begins), np.array(ends), 0, target)


@BOTH
def test_batches_and_sources_of_other_types_are_refused(module: Any):
    good = np.arange(10, dtype=np.uint16)
    tokens, mask = batch(1, 4)
    bad_sources = [(good.astype(np.float32), None), (good.reshape(2, 5), None), (good, np.ones(9, np.uint8))]
    bad_targets = [(tokens.astype(np.int32), mask), (tokens, mask[:, :3]), (tokens[0], mask)]
    for source in bad_sources:
        with pytest.raises(ValueError):
            module.gather_windows(source, np.array([0]), np.array([1]), 0, (np.array([0]), tokens, mask))
    for target in bad_targets:
        with pytest.raises(ValueError):
            module.gather_windows((good, None), np.array([0]), np.array([1]), 0, (np.array([0]), *target))


DAMAGES = [
    ("lengths", 1, 5), ("lengths", 1, -4), ("lengths", 0, 2**31 - 1), ("pointers", 1, 7), ("pointers", 1, -8),
    ("pointers", 2, 2**62), ("pointers", 0, 1), ("documents", 1, 3), ("documents", 0, -1), ("index", (1, 0), 3),
    ("index", (1, 0), -1), ("index", (1, 1), 99), ("index", (1, 1), -1),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("name", "place", "value"), DAMAGES)
def test_damage_is_an_error_where_it_is_read(module: Any, name: str, place: object, value: int):
    arrays = {
        "lengths": np.array([4, 4, 4], np.int32),
        "pointers": np.array([0, 8, 16]),
        "documents": np.array([0, 1, 2]),
        "index": np.array([[0, 0], [0, 3], [1, 2]]),
    }
    source = (np.arange(12, dtype=np.uint16), None)

    def read() -> np.ndarray:
        tokens, mask = batch(2, 6)
        target = (np.arange(2), tokens, mask)
        module.gather_documents(source, tuple(arrays.values()), np.array([0, 1]), target)
        return tokens

    assert read().tolist() == [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8]]
    arrays[name][place] = value
    with pytest.raises(IndexError, match="gather"):
        read()
