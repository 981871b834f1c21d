"""Every line of every file comes out once, in order, with its number, whatever the packing and the block size."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.readers import ReadProgress, expand_inputs, file_size, read_blocks
from megatron_ext.errors import DataError


def packed(content: bytes, suffix: str) -> bytes:
    middle = len(content) // 2
    halves = content[:middle], content[middle:]
    if suffix == ".gz":
        return b"".join(map(gzip.compress, halves))
    if suffix == ".zst":
        return b"".join(map(zstandard.ZstdCompressor().compress, halves))
    return content


def numbered_lines(paths: list[Path], block_bytes: int) -> list[tuple[int, int, bytes]]:
    found = []
    for block in read_blocks(paths, ReadProgress(), block_bytes):
        lines = block.lines()
        assert len(lines) == block.num_lines
        found += [(block.file_index, block.first_line + i, line) for i, line in enumerate(lines)]
    return found


@settings(deadline=None, max_examples=80)
@given(
    files=st.lists(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), max_size=8), max_size=3),
    suffix=st.sampled_from(["", ".gz", ".zst"]),
    block_bytes=st.integers(1, 40),
    final_newline=st.booleans(),
)
def test_lines_come_out_once_in_order(files, suffix, block_bytes, final_newline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    paths, wanted = [], []
    for index, lines in enumerate(files):
        content = b"\n".join(lines) + (b"\n" if final_newline and lines else b"")
        kept = content.removeprefix(b"\xef\xbb\xbf")
        expected = kept.split(b"\n")[: -1 if kept.endswith(b"\n") or not kept else None]
        wanted += [(index, number, line.removesuffix(b"\r")) for number, line in enumerate(expected, 1)]
        paths.append(folder / f"{index}.jsonl{suffix}")
        paths[-1].write_bytes(packed(content, suffix))
    assert numbered_lines(paths, block_bytes) == wanted


def test_only_line_feeds_end_lines(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes("a\u2028b\x0bc\x0cd\x85e\rf\r\ng".encode())
    assert [line for _, _, line in numbered_lines([path], 100)] == ["a\u2028b\x0bc\x0cd\x85e\rf".encode(), b"g"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_truncated_packed_file_is_refused(tmp_path: Path, suffix: str, cut: int):
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(packed(os.urandom(3000).hex().encode() + b"\n", suffix)[:-cut])
    with pytest.raises(DataError, match="damaged after line"):
        numbered_lines([path], 1000)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_that_is_not_packed_at_all_is_refused(tmp_path: Path, suffix: str):
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(b'{"text": "plain"}\n' * 10)
    with pytest.raises(DataError, match="damaged"):
        numbered_lines([path], 1000)


def test_patterns_are_sorted_and_names_keep_their_order(tmp_path: Path):
    for name in ("b.jsonl", "a.jsonl", "z.txt", "[x].jsonl"):
        (tmp_path / name).touch()
    found = expand_inputs([f"{tmp_path}/z.txt", f"{tmp_path}/*.jsonl"])
    assert [path.name for path in found] == ["z.txt", "[x].jsonl", "a.jsonl", "b.jsonl"]
    assert expand_inputs([f"{tmp_path}/[x].jsonl"]) == [tmp_path / "[x].jsonl"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing.jsonl"], r"missing\.jsonl"),
        (["*.parquet"], "matches no file"),
        (["."], "is a folder"),
        (["a.jsonl", "*.jsonl"], "twice"),
        (["loop"], "loop"),
    ],
)
def test_unusable_inputs_are_refused_by_name(tmp_path: Path, names: list[str], message: str):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=message):
        expand_inputs([f"{tmp_path}/{name}" for name in names])


def test_a_pipe_can_be_read(tmp_path: Path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    paths = expand_inputs([str(path)])
    assert file_size(path) is None
    writer = threading.Thread(target=lambda: path.write_bytes(b"a\nb\n"))
    writer.start()
    assert numbered_lines(paths, 100) == [(0, 1, b"a"), (0, 2, b"b")]
    writer.join()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_progress_counts_bytes_and_lines(tmp_path: Path, suffix: str):
    content = b'{"text": "x"}\n' * 1000
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes(packed(content, suffix))
    progress = ReadProgress()
    for _ in read_blocks([path], progress):
        pass
    assert progress == ReadProgress(path.stat().st_size, len(content), {0: 1000})
