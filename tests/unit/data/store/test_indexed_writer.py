"""Our files are megatron-core's files, byte for byte, in both directions (law L4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset as CoreDataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_ext.data.store.indexed import DTYPE_CODES, IndexedDataset
from megatron_ext.data.store.indexed_writer import IndexedWriter, write_indexed
from megatron_ext.errors import DataError

INTEGER_DTYPES = [dtype for dtype in DTYPE_CODES.values() if dtype.kind != "f"]
DOCUMENTS = st.lists(st.lists(st.integers(0, 127), max_size=12), max_size=12)


def write_with_core(prefix: Path, documents: list, dtype: np.dtype) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    for document in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")


@settings(deadline=None, max_examples=60)
@given(documents=DOCUMENTS, dtype=st.sampled_from(INTEGER_DTYPES))
def test_bytes_equal_those_of_megatron_cores_builder(documents: list, dtype: np.dtype, tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    write_with_core(folder / "core", documents, dtype)
    write_indexed(folder / "ours", documents, dtype)
    for suffix in ("bin", "idx"):
        assert (folder / f"ours.{suffix}").read_bytes() == (folder / f"core.{suffix}").read_bytes()


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_each_reads_what_the_other_wrote(dtype: np.dtype, tmp_path: Path):
    documents = [[1, 2, 3], [], [7], list(range(100))]
    write_with_core(tmp_path / "core", documents, dtype)
    write_indexed(tmp_path / "ours", documents, dtype)
    ours, core = IndexedDataset(tmp_path / "core"), CoreDataset(str(tmp_path / "ours"))
    assert len(ours) == len(core) == len(documents)
    for index, document in enumerate(documents):
        assert ours[index].dtype == core[index].dtype == dtype
        assert ours[index].tolist() == core[index].tolist() == document
    assert ours.document_boundaries.tolist() == core.document_indices.tolist()


def test_documents_appended_in_blocks_give_the_same_bytes(tmp_path: Path):
    documents = [[1, 2], [3], [], [4, 5, 6]]
    write_indexed(tmp_path / "single", documents, np.uint16)
    writer = IndexedWriter(tmp_path / "blocks", np.uint16)
    writer.append(np.array([1, 2, 3], np.uint16).tobytes(), np.array([2, 1]))
    writer.append(b"", np.array([], np.int64))
    writer.append(np.array([4, 5, 6], np.uint16).tobytes(), np.array([0, 3]))
    writer.finish()
    writer.publish()
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"blocks.{suffix}").read_bytes() == (tmp_path / f"single.{suffix}").read_bytes()


@pytest.mark.parametrize(("dtype", "token"), [(np.uint16, 65536), (np.uint16, -1), (np.int32, 2**31), (np.uint8, 256)])
def test_a_token_that_does_not_fit_is_refused_never_wrapped(dtype: type, token: int, tmp_path: Path):
    with pytest.raises(DataError, match=str(token)):
        write_indexed(tmp_path / "data", [[1, token]], dtype)
    assert not list(tmp_path.iterdir())


def test_a_document_longer_than_the_format_allows_is_refused(tmp_path: Path):
    class Bytes(bytes):
        def __len__(self) -> int:
            return 2 * 2**31

    writer = IndexedWriter(tmp_path / "data", np.uint16)
    with pytest.raises(DataError, match="2147483648"):
        writer.append(Bytes(), np.array([2**31]))
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_without_the_index_nothing_can_be_opened_while_the_old_data_is_replaced(tmp_path: Path, monkeypatch):
    write_indexed(tmp_path / "data", [[1, 2]], np.uint16)
    writer = IndexedWriter(tmp_path / "data", np.uint16)
    writer.append_document([3, 4])
    writer.finish()
    monkeypatch.setattr(writer.bin_file, "publish", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.publish()
    with pytest.raises(DataError):
        IndexedDataset(tmp_path / "data")


def test_a_loss_mask_lies_beside_the_tokens_and_is_read_back(tmp_path: Path):
    writer = IndexedWriter(tmp_path / "data", np.uint16, with_loss_mask=True)
    writer.append_document([1, 2, 3], bytes([0, 1, 2]))
    writer.append_document([], b"")
    writer.append_document([4], bytes([1]))
    with pytest.raises(ValueError, match="one code per token"):
        writer.append_document([5, 6], bytes([1]))
    with pytest.raises(ValueError, match="one code per token"):
        writer.append_document([5, 6])
    writer.finish()
    writer.publish()
    writer.discard()
    store = IndexedDataset(tmp_path / "data")
    assert store.loss_mask is not None
    assert (store.tokens.tolist(), store.loss_mask.tolist()) == ([1, 2, 3, 4], [0, 1, 2, 1])
    assert not list(tmp_path.glob("*.partial"))


def test_data_without_a_mask_takes_the_place_of_data_with_one(tmp_path: Path):
    for with_mask in (True, False):
        writer = IndexedWriter(tmp_path / "data", np.uint16, with_mask)
        writer.append_document([1], b"\x01" if with_mask else None)
        writer.finish()
        writer.publish()
        writer.discard()
    assert IndexedDataset(tmp_path / "data").loss_mask is None


def test_a_mask_of_another_length_is_refused_at_open(tmp_path: Path):
    write_indexed(tmp_path / "data", [[1, 2]], np.uint16)
    (tmp_path / "data.loss_mask").write_bytes(b"\x01")
    with pytest.raises(DataError, match=r"loss_mask has 1 bytes.*2 tokens"):
        IndexedDataset(tmp_path / "data")


def test_many_more_documents_than_one_block_give_megatron_cores_index(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("megatron_ext.data.store.indexed_writer._BLOCK", 3)
    documents = [[1] * (index % 4) for index in range(20)]
    write_indexed(tmp_path / "ours", documents, np.uint16)
    write_with_core(tmp_path / "core", documents, np.dtype("uint16"))
    assert (tmp_path / "ours.idx").read_bytes() == (tmp_path / "core.idx").read_bytes()
