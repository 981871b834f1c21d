"""Beyond 2^31 documents and 2^40 tokens nothing wraps: files as long as such data is, with holes that take no room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ext import native, sampling_numpy
from megatron_ext.data.blend import BlendView
from megatron_ext.data.order import PermutedOrder, SequentialOrder
from megatron_ext.data.order_file import FileOrder, OrderFileWriter, OrderTarget
from megatron_ext.data.split import Span, span_of, split_bounds
from megatron_ext.data.spread_mixture import WeightedMixture
from megatron_ext.data.store.indexed import HEADER, MAGIC, IndexedDataset
from megatron_ext.data.store.manifest import (
    Counts,
    DatasetManifest,
    FileFacts,
    TokenizerFacts,
    manifest_path,
)
from megatron_ext.data.views import WindowView
from megatron_ext.errors import DataError

LONGEST = 2**31 - 1
BOTH = pytest.mark.parametrize("module", [native, sampling_numpy])


def with_hole(path: Path, size: int, pieces: dict[int, bytes]) -> FileFacts:
    """Write a file of so many bytes that is zero except for a few pieces."""
    with path.open("wb") as stream:
        try:
            stream.truncate(size)
        except OSError as error:
            pytest.skip(f"the file system has no files of {size} bytes: {error}")
        for place, content in pieces.items():
            stream.seek(place)
            stream.write(content)
    return FileFacts(size, "0" * 64)


def write_manifest(prefix: Path, documents: int, tokens: int, bin_file: FileFacts, idx_file: FileFacts) -> None:
    """A manifest, with which a dataset opens without being read."""
    manifest = DatasetManifest(
        tool_version="1", key="text", dtype="uint8", append_eod=False, documents=documents, tokens=tokens,
        largest_id=255, tokenizer=TokenizerFacts("NullTokenizer", None, "x", 256, 255),
        records=Counts(documents, documents, 0, 0), quarantined_by_reason={}, inputs=[],
        bin_file=bin_file, idx_file=idx_file,
    )  # fmt: skip
    manifest_path(prefix).write_text(manifest.to_json())


@pytest.fixture
def emptied(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files go as soon as the test ends: nobody should copy them by mistake."""
    yield tmp_path
    for file in tmp_path.iterdir():
        file.unlink()


SEQUENCES = 520  # of 2^31 - 1 tokens each
NUM_TOKENS = SEQUENCES * LONGEST


@pytest.fixture
def long_data(emptied: Path) -> IndexedDataset:
    """More than 2^40 tokens; the 16 around place 2^40 and the last 16 are 1 to 16, the others 0."""
    piece = bytes(range(1, 17))
    bin_file = with_hole(emptied / "data.bin", NUM_TOKENS, {2**40 - 8: piece, NUM_TOKENS - 16: piece})
    lengths, boundaries = np.full(SEQUENCES, LONGEST, "<i4"), np.arange(SEQUENCES + 1, dtype="<i8")
    index = HEADER.pack(MAGIC, 1, 1, SEQUENCES, SEQUENCES + 1)
    index += lengths.tobytes() + (boundaries[:-1] * LONGEST).tobytes() + boundaries.tobytes()
    write_manifest(
        emptied / "data", SEQUENCES, NUM_TOKENS, bin_file, with_hole(emptied / "data.idx", len(index), {0: index})
    )
    return IndexedDataset(emptied / "data")


def test_windows_beyond_2_to_40_tokens_are_read_where_they_stand(long_data: IndexedDataset):
    long_data.check_structure()
    assert long_data.document_offsets(SEQUENCES - 1, SEQUENCES).tolist() == [NUM_TOKENS - LONGEST, NUM_TOKENS]
    view = WindowView(long_data, Span(0, SEQUENCES), 8).ordered_by(SequentialOrder(2**60))
    assert len(view) == (NUM_TOKENS - 1) // 8 > 2**37 and view.num_tokens == NUM_TOKENS > 2**40
    first, last = 2**37 - 1, len(view) - 1
    rows = view.read(view.sample_ids(first, 3))[0]
    assert rows.ravel().tolist() == [*range(1, 10), *range(9, 17), 0, *[0] * 9]
    behind = (NUM_TOKENS - 1) % 8  # tokens that no window predicts
    assert view[last].tolist() == list(range(8 - behind, 17 - behind))
    assert view.token_ranges(last)[0].begin == 8 * last
    with pytest.raises(IndexError):
        view.read(np.array([len(view)]))


def test_a_permuted_epoch_of_2_to_37_samples_is_opened_and_read_at_its_end(long_data: IndexedDataset):
    view = WindowView(long_data, Span(0, SEQUENCES), 8)
    order = PermutedOrder(len(view), "key")
    ids = view.ordered_by(order).sample_ids(len(view) - 50, 100)
    assert len(set(ids.tolist())) == 100 and ids.max() > 2**36 and view.read(ids)[0].shape == (100, 9)


def test_a_part_of_2_to_40_tokens_begins_behind_the_others(long_data: IndexedDataset):
    spans = [span_of(bound, SEQUENCES) for bound in split_bounds("500,10,10")]
    view = WindowView(long_data, spans[2], 8)
    assert view.token_ranges(0)[0].begin == 510 * LONGEST > 2**39
    assert view.token_ranges(len(view) - 1)[0].end <= NUM_TOKENS


@BOTH
def test_documents_are_gathered_beyond_2_to_40_bytes(module: Any, long_data: IndexedDataset):
    documents, index = np.array([3, SEQUENCES - 1, 0], np.int32), np.array([[1, LONGEST - 12], [1, LONGEST - 4]])
    tokens, rows = np.empty((2, 9), np.int64), np.arange(2)
    order = (long_data.lengths, long_data.pointers, documents, index)
    module.gather_documents((long_data.tokens, None), order, np.array([0, 1]), (rows, tokens, None))
    assert tokens.tolist() == [list(range(5, 14)), [13, 14, 15, 16, 0, 0, 0, 0, 0]]


def test_more_than_2_to_31_documents_are_opened_split_and_read(emptied: Path):
    """All of them are empty but the last five, which have 1 to 5 tokens."""
    sequences, lengths = 2**31 + 10, np.arange(1, 6)
    ends = np.cumsum(lengths)
    pointers_at, bounds_at = HEADER.size + 4 * sequences, HEADER.size + 12 * sequences
    pieces = {
        0: HEADER.pack(MAGIC, 1, 1, sequences, sequences + 1),
        pointers_at - 4 * 5: lengths.astype("<i4").tobytes(),
        bounds_at - 8 * 5: (ends - lengths).astype("<i8").tobytes(),
        bounds_at + 8 * (sequences - 9): np.arange(sequences - 9, sequences + 1, dtype="<i8").tobytes(),
    }
    idx_file = with_hole(emptied / "data.idx", bounds_at + 8 * (sequences + 1), pieces)
    write_manifest(
        emptied / "data", sequences, 15, with_hole(emptied / "data.bin", 15, {0: bytes(range(15))}), idx_file
    )
    store = IndexedDataset(emptied / "data")
    assert len(store) == store.num_documents == sequences
    assert store[sequences - 2].tolist() == [6, 7, 8, 9] and store.token_offset(sequences - 5) == 0
    assert store.document_offsets(sequences - 3, sequences).tolist() == [3, 6, 10, 15]
    spans = [span_of(bound, sequences) for bound in split_bounds("1,1") if bound]
    assert spans == [Span(0, 2**30 + 5), Span(2**30 + 5, sequences)]
    view = WindowView(store, spans[1], 7)
    assert view.read(np.array([1, 0]))[0].tolist() == [list(range(7, 15)), list(range(8))]
    assert WindowView(store, Span(2**31 + 8, sequences), 2).read(np.array([0]))[0].tolist() == [[6, 7, 8]]


def test_order_files_hold_ids_beyond_2_to_40(tmp_path: Path):
    ids = [2**40 + 3, 2**40 + 2**32 + 3, 3, 2**31, 2**32 + 3]
    target = OrderTarget("data", 0, 80, 16, 2**41)
    with OrderFileWriter(tmp_path / "x", 5, target, {}, "distinct") as writer:
        writer.append(ids)
        writer.publish()
    assert FileOrder(tmp_path / "x", target).sample_ids(5 * 2**40 + 1, 4).tolist() == ids[1:]
    with (
        pytest.raises(DataError, match=f"sample id {2**41} at place 1"),
        OrderFileWriter(tmp_path / "y", 2, target, {}) as writer,
    ):
        writer.append([2**41 - 1, 2**41])


def test_samples_of_a_blend_keep_their_datasets_and_ids_beyond_2_to_40(long_data: IndexedDataset):
    views = [WindowView(long_data, Span(0, SEQUENCES), 1).ordered_by(SequentialOrder(2**60)) for _ in range(3)]
    blend = BlendView(views, WeightedMixture([1.0, 2.0, 5.0]))
    start = 2**41
    ids = blend.sample_ids(start, 64)
    sources = blend.sources_of(ids)
    assert np.bincount(sources).tolist() == [8, 16, 40]
    for source, weight in enumerate((1, 2, 5)):
        local = ids[sources == source] & (2**48 - 1)
        assert abs(local[0] - start * weight / 8) < 64 and np.diff(local).tolist() == [1] * (len(local) - 1)
