"""The checks of tokens and mask say the same whatever the size of the blocks in which the bytes come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.store.content_checks import Checksum, DocumentEnds, MaskCodes, TokenRange
from megatron_ext.data.store.file_scan import scan_file
from megatron_ext.data.store.indexed import IndexedDataset, bin_path
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.data.store.loss_mask import loss_mask_path
from megatron_ext.data.store.manifest import FileFacts
from megatron_ext.errors import DataError
from tests.unit.data.described import random_records, write_run

EOD = 9


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.fsync", lambda _: None)


def verdict(check, path: Path, block_bytes: int = 1 << 20) -> str:
    scan_file(path, [check], lambda _: None, block_bytes)
    return check.verdict()


def ends(folder: Path, documents: list[list[int]], block_bytes: int) -> str:
    write_indexed(folder / "data", documents, np.uint16)
    return verdict(DocumentEnds(IndexedDataset(folder / "data"), EOD), folder / "data.bin", block_bytes)


@pytest.mark.parametrize("block_bytes", [2, 6, 1 << 20])
@pytest.mark.parametrize("documents_at_once", [1, 2, 100])
def test_a_document_that_ends_otherwise_is_found_wherever_the_blocks_are_cut(
    block_bytes: int, documents_at_once: int, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("megatron_ext.data.store.content_checks._DOCUMENTS", documents_at_once)
    good = [[1, EOD], [EOD], [2, 3, 4, 5, EOD], [EOD, EOD]]
    assert ends(tmp_path, good, block_bytes) == "each document ends with 9"
    assert ends(tmp_path, [], block_bytes)
    for place in range(4):
        for bad in ([1], [EOD, 1], []):
            documents = [*good[:place], bad, *good[place:]]
            with pytest.raises(DataError, match=f"1 documents .* the first of them is document {place}"):
                ends(tmp_path, documents, block_bytes)
    with pytest.raises(DataError, match=r"2 documents .* document 0"):
        ends(tmp_path, [[], []], block_bytes)
    with pytest.raises(DataError, match=r"2 documents .* document 1"):
        ends(tmp_path, [[EOD], [1], [EOD], [2]], block_bytes)


def test_documents_of_several_sequences_end_with_their_last_one(tmp_path: Path):
    write_indexed(tmp_path / "data", [[1], [EOD], [2, EOD]], np.uint16)
    path = tmp_path / "data.idx"
    raw = path.read_bytes()
    boundaries = np.array([0, 2, 3, 3], "<i8")  # [1, EOD], [2, EOD], and one without a sequence
    path.write_bytes(raw[: len(raw) - 32] + boundaries.tobytes())
    with pytest.raises(DataError, match=r"1 documents .* document 2"):
        verdict(DocumentEnds(IndexedDataset(tmp_path / "data"), EOD), tmp_path / "data.bin")


@pytest.mark.parametrize("block_bytes", [8, 1 << 20])
def test_ids_outside_the_vocabulary_are_found(block_bytes: int, tmp_path: Path):
    write_indexed(tmp_path / "data", [[5, 7], [6, 3]], np.int32)
    assert verdict(TokenRange(IndexedDataset(tmp_path / "data")), tmp_path / "data.bin", block_bytes) == "largest 7"
    write_indexed(tmp_path / "data", [[1, 2, 3], [-1]], np.int32)
    with pytest.raises(DataError, match="holds the id -1"):
        verdict(TokenRange(IndexedDataset(tmp_path / "data")), tmp_path / "data.bin", block_bytes)


@pytest.mark.parametrize(
    ("change", "message"), [({"largest_id": 999}, "is 1000.*says 999"), ({"largest_id": 1001}, "is 1000.*says 1001")]
)
def test_the_largest_id_is_the_stated_one(change: dict, message: str, tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(0, 9), **change)
    with pytest.raises(DataError, match=message):
        verdict(TokenRange(IndexedDataset(prefix)), bin_path(prefix))


def test_a_mask_has_only_codes_that_exist(tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(0, 9))
    path = loss_mask_path(prefix)
    mask = np.fromfile(path, np.uint8)
    check = MaskCodes(prefix)
    assert verdict(check, path, 8) == f"{np.count_nonzero(mask)} of {len(mask)} tokens are learned"
    assert list(check.counts.values()) == np.bincount(mask, minlength=3).tolist()
    mask[len(mask) // 2] = 3
    mask.tofile(path)
    with pytest.raises(DataError, match=r"loss_mask holds the code 3.*0, 1, 2"):
        verdict(MaskCodes(prefix), path, 8)


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"abc")
    facts = FileFacts(3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert verdict(Checksum(path, facts), path, 1) == facts.sha256
    path.write_bytes(b"abd")
    with pytest.raises(DataError, match=r"file\.bin is damaged"):
        verdict(Checksum(path, facts), path)
