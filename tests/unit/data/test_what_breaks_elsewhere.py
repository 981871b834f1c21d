"""Weak spots of other readers and writers of this format, each shown not to be one here."""

from __future__ import annotations

import gc
import struct
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset as CoreDataset

from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.store.indexed import HEADER, IndexedDataset, token_dtype
from megatron_ext.data.store.indexed_writer import IndexedWriter, write_indexed
from megatron_ext.data.store.merge import MergeRequest, merge_datasets
from megatron_ext.data.store.verify import VerifyOptions, verify_dataset
from megatron_ext.errors import DataError
from tests.unit.data.described import random_records, write_run, write_shards
from tests.unit.data.small import make_dataset, write_jsonl

NUM_SEQUENCES = 50


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return make_dataset(tmp_path, count=NUM_SEQUENCES)


def test_no_token_comes_out_of_a_truncated_bin(prefix: str):
    """Elsewhere an unbuffered reader gives plausible wrong ids beyond the cut, a mapped one fails weeks later."""
    path = Path(f"{prefix}.bin")
    content = path.read_bytes()
    for size in range(0, len(content), 97):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=f"truncated: it has {size} bytes.*{len(content)} bytes"):
            IndexedDataset(prefix)


POINTERS = HEADER.size + 4 * NUM_SEQUENCES


@pytest.mark.parametrize(
    ("file", "offset", "content"),
    [
        pytest.param("idx", HEADER.size + 20, struct.pack("<i", 60), id="a length reads into the next document"),
        pytest.param("idx", POINTERS + 40, struct.pack("<q", 0), id="a pointer leads to another document"),
        pytest.param("idx", 17, bytes([2]), id="another type splits ids in half"),
        pytest.param("idx", 17, bytes([4]), id="another type joins two ids"),
        pytest.param("idx", HEADER.size + 20, struct.pack("<i", -5), id="a negative length reads nearly everything"),
        pytest.param("bin", None, bytes(1000), id="a thousand bytes too many"),
        pytest.param("idx", None, bytes(8), id="an index too long"),
    ],
)
def test_a_damaged_index_that_is_accepted_elsewhere_is_refused(
    prefix: str, file: str, offset: int | None, content: bytes
):
    path = Path(f"{prefix}.{file}")
    raw = bytearray(path.read_bytes())
    place = len(raw) if offset is None else offset
    raw[place : place + len(content)] = content
    path.write_bytes(raw)
    CoreDataset(prefix)  # it opens there
    with pytest.raises(DataError, match=r"data\.(bin|idx)"):
        IndexedDataset(prefix)


def test_the_checks_hold_under_optimized_python(prefix: str, repo_root: Path):
    """Elsewhere they are `assert` statements, which `python -O` removes."""
    path = Path(f"{prefix}.idx")
    path.write_bytes(b"X" + path.read_bytes()[1:])
    code = "import sys; from megatron_ext.data.store.indexed import IndexedDataset; IndexedDataset(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-O", "-c", code, prefix], capture_output=True, text=True, check=False, cwd=repo_root
    )
    assert result.returncode == 1 and "does not begin with MMIDIDX" in result.stderr


def test_arrays_outlive_their_dataset(tmp_path: Path):
    """Elsewhere the destructor closes the map under them: a segmentation fault."""
    made = write_run(tmp_path / "x", random_records(0, 200))
    dataset = IndexedDataset(made)
    arrays = [dataset.tokens, dataset.lengths, dataset.pointers, dataset.document_boundaries, dataset.loss_mask]
    arrays += [dataset[index] for index in range(0, len(dataset), 7)]
    wanted = [array.copy() for array in arrays if array is not None]
    gone = weakref.ref(dataset)
    del dataset
    gc.collect()
    assert gone() is None
    for file in tmp_path.iterdir():
        file.unlink()
    for array, copy in zip(arrays, wanted, strict=True):
        assert array is not None and np.array_equal(array, copy)
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = 0


@pytest.mark.parametrize("container", [list, np.array], ids=["list", "array"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_an_id_that_does_not_fit_is_refused_never_wrapped(dtype: type, container: type, tmp_path: Path):
    """Elsewhere an int64 array with id 70,000 is stored as 4,464 without a word."""
    limits = np.iinfo(dtype)
    for token in (limits.max + 1, limits.max + 4465, 2**40, limits.min - 1):
        with pytest.raises(DataError, match=str(token)):
            write_indexed(tmp_path / "data", [container([token, 1])], dtype)
    write_indexed(tmp_path / "data", [container([limits.min, limits.max])], dtype)
    assert IndexedDataset(tmp_path / "data").tokens.tolist() == [limits.min, limits.max]


def test_token_bytes_of_another_width_are_refused(tmp_path: Path):
    writer = IndexedWriter(tmp_path / "data", np.uint16)
    with pytest.raises(ValueError, match="8 bytes for 2 tokens of uint16"):
        writer.append(np.array([1, 2], np.int32).tobytes(), np.array([2]))
    writer.discard()


@pytest.mark.parametrize("vocab_size", [65499, 65500, 65535, 65536, 65537])
def test_vocabularies_around_two_to_the_sixteen_are_stored_right(vocab_size: int, tmp_path: Path):
    """Elsewhere two parts of one program draw the line between 2 and 4 bytes at different sizes."""
    ids = [0, 1, 4464, vocab_size - 1000, vocab_size - 2]
    source = write_jsonl(tmp_path / "in.jsonl", [" ".join(map(str, ids))])
    request = PreprocessRequest(
        inputs=(str(source),), output_prefix=str(tmp_path / "out"), tokenizer_type="NullTokenizer",
        vocab_size=vocab_size - 1, rows=RowSettings(append_eod=True),
    )  # fmt: skip
    (manifest,) = preprocess(request)
    made = f"{tmp_path}/out_text_document"
    ours, core = IndexedDataset(made), CoreDataset(made)
    assert ours[0].tolist() == core[0].tolist() == [*ids, vocab_size - 1]
    assert ours.dtype == core[0].dtype == token_dtype(vocab_size) == manifest.dtype
    assert ours.dtype == (np.uint16 if vocab_size == 65499 else np.int32)
    assert (manifest.tokenizer.vocab_size, manifest.largest_id) == (vocab_size, vocab_size - 1)
    assert all(finding.ok for finding in verify_dataset(made, VerifyOptions(), lambda _: None))


def test_what_is_written_and_joined_here_is_read_there(tmp_path: Path):
    merge_datasets(
        MergeRequest(tuple(write_shards(tmp_path / "x", random_records(0, 60), [20, 40])), f"{tmp_path}/joined")
    )
    ours, core = IndexedDataset(tmp_path / "joined"), CoreDataset(f"{tmp_path}/joined")
    assert len(ours) == len(core) > 20
    assert all(ours[index].tolist() == core[index].tolist() for index in range(len(ours)))
    assert ours.document_boundaries.tolist() == core.document_indices.tolist()
