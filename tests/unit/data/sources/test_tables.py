"""Parquet rows come out once and in order, in batches that bound the memory, from any row on; damage is refused."""

from __future__ import annotations

import datetime
import os
import random
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.sources.inputs import InputFile
from megatron_ext.data.sources.pieces import ReadOptions, ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.errors import DataError
from tests.unit.data.sources.written import parquet_bytes, raws, read_all, values, write_input

ROWS = [{"text": f"row {number} 中", "n": number, "more": {"list": [1, None]}} for number in range(250)]


def write(folder: Path, rows: list[dict] = ROWS, compression: str = "", **settings: int) -> InputFile:
    return write_input(folder, "x", "parquet", parquet_bytes(rows, **settings), compression)


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
@pytest.mark.parametrize("row_group_size", [1, 37, 1000])
@pytest.mark.parametrize("block_bytes", [1, 500, 1 << 19])
def test_rows_come_out_once_and_in_order(tmp_path: Path, compression: str, row_group_size: int, block_bytes: int):
    file = write(tmp_path, compression=compression, row_group_size=row_group_size)
    found = read_all([file], block_bytes)
    assert [value for _, _, value in found] == ROWS
    assert [number for _, number, _ in found] == list(range(1, 251))


@pytest.mark.parametrize("start", [0, 1, 36, 37, 38, 249, 250])
def test_reading_goes_on_at_any_row(tmp_path: Path, start: int):
    file = write(tmp_path, row_group_size=37)
    assert values([file], 500, start=Position(0, start, start)) == ROWS[start:]


def test_a_file_with_fewer_rows_than_before_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="it has 250 rows, fewer than the 251"):
        values([write(tmp_path)], start=Position(0, 251, 251))


def test_only_the_columns_asked_for_are_read(tmp_path: Path):
    options = ReadOptions(columns=("n", "absent"))
    assert values([write(tmp_path)], options=options) == [{"n": row["n"]} for row in ROWS]


def test_batches_are_bounded_whatever_the_row_groups(tmp_path: Path):
    rows = [{"text": os.urandom(500).hex()} for _ in range(1000)]
    blocks = list(read_blocks([write(tmp_path, rows)], ReadProgress(), block_bytes=50_000))
    assert max(len(block.payload) for block in blocks) < 100_000
    assert max(len(block.payload) for block in blocks[:-1]) > 25_000


@pytest.mark.parametrize("compression", ["", "gz"])
def test_progress_counts_bytes_on_disk_and_of_rows(tmp_path: Path, compression: str):
    file, progress = write(tmp_path, compression=compression, row_group_size=37), ReadProgress()
    payload_bytes = 0
    for block in read_blocks([file], progress, block_bytes=500):
        payload_bytes += len(block.payload)
        assert 0 < progress.raw_bytes <= (file.size_bytes or 0)
    assert progress == ReadProgress(file.size_bytes or 0, payload_bytes, {0: 250})


def test_no_rows_and_no_row_groups_give_no_blocks(tmp_path: Path):
    assert values([write(tmp_path, [])]) == []
    schema = pyarrow.schema([("text", pyarrow.string())])
    with parquet.ParquetWriter(tmp_path / "none.parquet", schema):
        pass
    assert values([InputFile(tmp_path / "none.parquet", "parquet")]) == []


def test_the_quarantine_tells_a_row_as_json(tmp_path: Path):
    row = {"when": datetime.date(2024, 2, 29), "data": b"\xff", "n": None}
    assert raws([write(tmp_path, [row])]) == [b'{"when":"2024-02-29","data":"/w==","n":null}']


def test_parquet_from_a_pipe_is_read_by_way_of_a_temporary_file(tmp_path: Path):
    import threading

    pipe = tmp_path / "pipe.parquet"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(parquet_bytes(ROWS),))
    writer.start()
    assert values([InputFile(pipe, "parquet")]) == ROWS
    writer.join()


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"text": "a"}\n' * 100])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes):
    with pytest.raises(DataError, match=r"x\.parquet is damaged after record 0"):
        values([write_input(tmp_path, "x", "parquet", content)])


@pytest.mark.parametrize("cut", [1, 8, 500])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int):
    with pytest.raises(DataError, match="damaged after record 0"):
        values([write_input(tmp_path, "x", "parquet", parquet_bytes(ROWS)[:-cut])])


def test_a_damaged_file_gives_rows_or_a_refusal_and_never_a_crash(tmp_path: Path):
    content, generator = parquet_bytes(ROWS, 37), random.Random(0)
    for _ in range(150):
        bad = bytearray(content)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        try:
            values([write_input(tmp_path, "x", "parquet", bytes(bad))])
        except DataError as error:
            assert "x.parquet is damaged after record" in str(error)
