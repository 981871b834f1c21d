"""A damaged dataset is refused at open, with the file's name; an intact one outlives its reader."""

from __future__ import annotations

import gc
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.store.indexed import HEADER, IndexedDataset, token_dtype
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError
from tests.unit.data.described import random_records, write_run
from tests.unit.data.small import make_dataset, random_documents

NUM_SEQUENCES = 200


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return make_dataset(tmp_path, count=NUM_SEQUENCES)


def patch(path: Path, offset: int, content: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(raw)


def test_the_type_rule_is_megatron_cores():
    from megatron.core.datasets.indexed_dataset import DType

    for size in (1, 65499, 65500, 65535, 65536, 65537, 200000):
        assert token_dtype(size) == DType.optimal_dtype(size)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_missing_file_is_named(prefix: str, suffix: str):
    Path(f"{prefix}.{suffix}").unlink()
    with pytest.raises(DataError, match=rf"data\.{suffix}"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("change", [-1, 1, 200, -200])
def test_a_file_of_the_wrong_size_is_refused_with_the_sizes(prefix: str, suffix: str, change: int):
    path = Path(f"{prefix}.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\x00" * change)
    with pytest.raises(DataError, match=rf"data\.{suffix}|multimodal"):
        IndexedDataset(prefix)


def test_a_truncated_bin_is_called_truncated_with_both_sizes(prefix: str):
    path = Path(f"{prefix}.bin")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"truncated.*{size - 100}.*{size}"):
        IndexedDataset(prefix)


LENGTHS = HEADER.size
POINTERS = LENGTHS + 4 * NUM_SEQUENCES
BOUNDARIES = POINTERS + 8 * NUM_SEQUENCES


@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (0, b"X"),
        (9, struct.pack("<Q", 2)),
        (17, bytes([4])),
        (17, bytes([7])),
        (17, bytes([99])),
        (18, struct.pack("<Q", NUM_SEQUENCES + 1)),
        (18, struct.pack("<Q", 2**63)),
        (26, struct.pack("<Q", NUM_SEQUENCES)),
        (LENGTHS, struct.pack("<i", -5)),
        (LENGTHS + 40, struct.pack("<i", 10**6)),
        (POINTERS + 80, struct.pack("<q", 2)),
        (BOUNDARIES, struct.pack("<q", 1)),
        (BOUNDARIES + 8 * NUM_SEQUENCES, struct.pack("<q", NUM_SEQUENCES - 1)),
        (BOUNDARIES + 80, struct.pack("<q", -1)),
    ],
)
def test_a_changed_index_is_refused(prefix: str, offset: int, content: bytes):
    patch(Path(f"{prefix}.idx"), offset, content)
    with pytest.raises(DataError, match="data"):
        IndexedDataset(prefix)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_changed_byte_of_the_index_is_refused_or_changes_no_token(data: st.DataObject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutant")
    documents = random_documents(1, 12)
    write_indexed(folder / "data", documents, np.uint16)
    path = folder / "data.idx"
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        dataset = IndexedDataset(folder / "data")
    except DataError:
        return
    if place == 17:  # the same width under another name: uint16 and int16 hold the same small ids
        assert dataset.dtype == np.int16
    assert [dataset[i].tolist() for i in range(len(dataset))] == [document.tolist() for document in documents]


def test_arrays_outlive_the_dataset(prefix: str):
    dataset = IndexedDataset(prefix)
    index = int(np.argmax(dataset.lengths))
    row, wanted = dataset[index], dataset[index].tolist()
    del dataset
    gc.collect()
    assert row.tolist() == wanted


def test_a_dataset_without_tokens_can_be_opened(tmp_path: Path):
    write_indexed(tmp_path / "empty", [], np.int32)
    dataset = IndexedDataset(tmp_path / "empty")
    assert (len(dataset), dataset.num_tokens, dataset.num_documents) == (0, 0, 0)


def test_token_offsets_rise_to_the_number_of_tokens(prefix: str):
    dataset = IndexedDataset(prefix)
    offsets = [dataset.token_offset(index) for index in range(len(dataset) + 1)]
    assert np.diff(offsets).tolist() == dataset.lengths.tolist()
    assert offsets[-1] == dataset.num_tokens == len(dataset.tokens)


def test_document_offsets_are_those_of_their_first_sequences(tmp_path: Path):
    write_indexed(tmp_path / "data", [[1], [2, 3], [4]], np.uint16)
    path = tmp_path / "data.idx"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) - 32] + np.array([0, 2, 2, 3], "<i8").tobytes())
    dataset = IndexedDataset(tmp_path / "data")
    assert dataset.document_offsets(0, 3).tolist() == [0, 3, 3, 4]
    assert dataset.document_offsets(1, 2).tolist() == [3, 3]


def test_identity_tells_datasets_apart_without_a_manifest(tmp_path: Path):
    first, again, other = (IndexedDataset(make_dataset(tmp_path, f"d{i}", seed)) for i, seed in enumerate((0, 0, 1)))
    assert first.identity == again.identity != other.identity


def test_sequences_beyond_the_end_are_an_index_error(prefix: str):
    with pytest.raises(IndexError):
        IndexedDataset(prefix)[NUM_SEQUENCES]


def by_bounds(dataset: IndexedDataset, index: int) -> np.ndarray:
    begins, ends = dataset.sequence_bounds(np.array([index]))
    return dataset.tokens[begins[0] : ends[0]]


def by_document(dataset: IndexedDataset, index: int) -> np.ndarray:
    begin, end = dataset.document_offsets(index, index + 1)
    return dataset.tokens[begin:end]


READS = (IndexedDataset.__getitem__, by_bounds, by_document)


def test_with_a_manifest_opening_looks_at_the_ends_only_and_reading_at_the_neighbours(tmp_path: Path):
    """A changed entry inside opens, is an error wherever it is read, and nothing else is."""
    prefix = write_run(tmp_path / "x", random_records(3, 20, bad_share=0))
    path = Path(f"{prefix}.idx")
    good, content = IndexedDataset(prefix), path.read_bytes()
    good.check_structure()
    wanted, count = [row.tolist() for row in good], len(good)
    middle = count // 2
    for offset, kind in ((HEADER.size + 4 * middle, "<i"), (HEADER.size + 4 * count + 8 * middle, "<q")):
        said = struct.unpack_from(kind, content, offset)[0]
        for value in (said + 2, said - 2, -said - 2, 2**31 - 1):
            patch(path, offset, struct.pack(kind, value))
            dataset, refused = IndexedDataset(prefix), 0
            for index in range(count):
                for read in READS:
                    try:
                        assert read(dataset, index).tolist() == wanted[index]
                    except DataError:
                        assert -2 <= index - middle <= 1  # a document ends where the next begins, which is checked too
                        refused += index == middle
            assert refused == 3
            with pytest.raises(DataError, match="damaged"):
                dataset.check_structure()
            path.unlink()
            path.write_bytes(content)


def test_document_boundaries_that_fall_are_refused_where_they_are_read(tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(3, 20, bad_share=0))
    path = Path(f"{prefix}.idx")
    dataset = IndexedDataset(prefix)
    place, count = 5, dataset.num_documents
    for value in (-1, 0, count + 1):
        patch(path, HEADER.size + 12 * count + 8 * place, struct.pack("<q", value))
        damaged = IndexedDataset(prefix)
        with pytest.raises(DataError, match="boundaries"):
            damaged.document_offsets(0, count)
        with pytest.raises(DataError, match="boundaries"):
            damaged.check_structure()


def test_the_structure_is_read_once(prefix: str, monkeypatch: pytest.MonkeyPatch):
    dataset = IndexedDataset(prefix)  # without a manifest all of it is checked at open
    monkeypatch.setattr(IndexedDataset, "_check_sequences", lambda _: pytest.fail("read again"))
    dataset.check_structure()
