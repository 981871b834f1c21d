"""Records of any mixture of files come out once and in order, and behind any block exactly the rest of them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.sources.inputs import InputFile, expand_inputs
from megatron_ext.data.sources.pieces import ReadOptions, ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.sources.shards import Shard
from megatron_ext.errors import DataError
from tests.unit.data.sources.written import parquet_bytes, read_all, told, values, write_input

RECORDS = st.lists(st.dictionaries(st.sampled_from(["text", "b"]), st.text(max_size=12)), max_size=6)
FORMS = st.sampled_from(["jsonl", "json lines", "array", "pretty array", "one object", "parquet", "text", "text-file"])
FILES = st.lists(st.tuples(RECORDS, FORMS, st.sampled_from(["", "gz", "zst"]), st.booleans()), max_size=3)


def written(folder: Path, files: list) -> tuple[list[InputFile], list[list]]:
    """Files of the drawn records in the drawn forms, and the values that reading each must give."""
    inputs, wanted = [], []
    for index, (records, form, compression, flag) in enumerate(files):
        kind, content, expected = spelled(records, form, flag)
        inputs.append(write_input(folder, str(index), kind, content, compression))
        wanted.append(expected)
    return inputs, wanted


def spelled(records: list[dict], form: str, flag: bool) -> tuple[str, bytes, list]:
    mark = b"\xef\xbb\xbf" if flag else b""
    if form in ("array", "pretty array"):
        indent = None if form == "array" else 2
        return "json", mark + json.dumps(records, indent=indent, ensure_ascii=flag).encode(), records
    if form == "one object":
        return "json", mark + json.dumps(records[:1][0] if records else {}, indent=2).encode(), records[:1] or [{}]
    if form == "parquet":
        rows = [{"text": record.get("text")} for record in records]
        return "parquet", parquet_bytes(rows, row_group_size=3), rows
    texts = ["".join(record.values()) for record in records]
    if form == "text-file":
        return "text-file", mark + "\n".join(texts).encode(), ["\n".join(texts)]
    if form == "text":
        lines = "\r\n".join(texts).encode()
        plain = lines.decode().split("\n")
        return "text", mark + lines, [line.removesuffix("\r") for line in (plain if plain[-1] else plain[:-1])]
    lines = b"".join(json.dumps(record, ensure_ascii=not flag).encode() + b"\n" for record in records)
    return "json" if form == "json lines" else "jsonl", mark + (lines[:-1] if flag else lines), records


@settings(deadline=None, max_examples=120)
@given(files=FILES, block_bytes=st.integers(1, 150))
def test_all_records_come_out_once_and_in_order(files: list, block_bytes: int, tmp_path_factory):
    inputs, wanted = written(tmp_path_factory.mktemp("r"), files)
    progress = ReadProgress()
    found = list(told(read_blocks(inputs, progress, block_bytes=block_bytes)))
    assert found == [
        (index, number, value) for index, file in enumerate(wanted) for number, value in enumerate(file, 1)
    ]
    assert progress.records == {index: len(file) for index, file in enumerate(wanted)}
    assert progress.raw_bytes == sum(file.size_bytes or 0 for file in inputs)


@settings(deadline=None, max_examples=60)
@given(
    files=FILES,
    block_bytes=st.integers(1, 150),
    later_bytes=st.integers(1, 150),
    limit=st.sampled_from([15, 1 << 30]),
    shard=st.sampled_from([None, Shard(0, 2), Shard(1, 2)]),
)
def test_reading_goes_on_behind_any_block(files, block_bytes, later_bytes, limit, shard, tmp_path_factory):
    inputs, _ = written(tmp_path_factory.mktemp("r"), files)
    options = ReadOptions(limit)
    blocks = list(read_blocks(inputs, ReadProgress(), None, shard, block_bytes, options))
    whole = list(told(blocks))
    done, total = 0, ReadProgress()
    for _ in read_blocks(inputs, total, None, shard, block_bytes, options):
        pass
    for block in blocks:
        done += block.num_records
        progress = ReadProgress(records={index: total.records[index] for index in range(block.file_index)})
        assert list(told(read_blocks(inputs, progress, block.after, shard, later_bytes, options))) == whole[done:]
        assert (progress.records, progress.raw_bytes) == (total.records, total.raw_bytes)


def test_a_pipe_can_be_read_but_not_from_its_middle(tmp_path: Path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    files = expand_inputs([str(path)], "text")
    writer = threading.Thread(target=lambda: path.write_bytes(b"a\nb\n"))
    writer.start()
    assert read_all(files) == [(0, 1, "a"), (0, 2, "b")]
    writer.join()
    with pytest.raises(DataError, match="cannot be read again from record 2"):
        read_blocks(files, ReadProgress(), Position(0, 2, 1))
    with pytest.raises(DataError, match="standard input cannot be read again"):
        read_blocks([InputFile(None, "jsonl")], ReadProgress(), Position(0, 2, 1))
    assert read_all([*files, write_input(tmp_path, "x", "text", b"c")], start=Position(1)) == [(1, 1, "c")]


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "text", "text-file", "parquet"])
def test_a_truncated_packed_file_is_refused_with_its_name_and_the_place(tmp_path: Path, kind: str, compression: str):
    records = [{"text": os.urandom(50).hex()} for _ in range(100)]
    content = {"json": json.dumps(records).encode(), "parquet": parquet_bytes(records)}.get(
        kind, b"".join(json.dumps(record).encode() + b"\n" for record in records)
    )
    file = write_input(tmp_path, "x", kind, content, compression)
    file.path.write_bytes(file.path.read_bytes()[:-9])
    before = write_input(tmp_path, "good", "text", b"a\n" * 7)
    found = []
    with pytest.raises(
        DataError, match=rf"x\.\w+\.{compression} is damaged after record \d+ \(it ends in the middle"
    ) as e:
        for record in told(read_blocks([before, file], ReadProgress(), block_bytes=1000)):
            found.append(record)
    assert f"after record {len(found) - 7} " in str(e.value)


def test_an_error_of_the_disk_is_told_with_the_place(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", b"a\n")
    blocks = read_blocks([file], ReadProgress())
    file.path.unlink()
    with pytest.raises(DataError, match=r"reading .*x\.txt failed after record 0 \(No such file"):
        next(blocks)


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", b"a\n" * 10)
    blocks = read_blocks([file], ReadProgress(), block_bytes=4)
    first = next(blocks).parsed()
    with file.path.open("ab") as stream:
        stream.write(b"b\n")
    assert [*first, *(value for _, _, value in told(blocks))] == ["a"] * 10 + ["b"]


def test_nothing_follows_the_last_file(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", b"a\n")
    assert values([file], start=Position(1)) == values([file], start=Position(0, 2, 1)) == values([]) == []
