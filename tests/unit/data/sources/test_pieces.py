"""The text of a file comes out of every packing byte for byte, from any offset; damage and missing ends are noticed."""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.sources.pieces import DamagedFileError, FileJob, ReadProgress, text_pieces, unpacked_file
from tests.unit.data.sources.written import MAGIC, packed, write_input

PACKINGS = ["", "gz", "zst"]


def job_for(file, block_bytes: int = 1 << 19, offset: int = 0) -> FileJob:
    return FileJob(file, Position(0, offset), None, ReadProgress(), block_bytes)


@settings(deadline=None, max_examples=60)
@given(
    content=st.binary(max_size=200),
    compression=st.sampled_from(PACKINGS),
    block_bytes=st.integers(1, 50),
    offset=st.integers(0, 200),
)
def test_text_comes_out_from_any_offset(content, compression, block_bytes, offset, tmp_path_factory):
    file = write_input(tmp_path_factory.mktemp("p"), "x", "text", content, compression)
    assume(compression or not content.startswith(MAGIC))
    job = job_for(file, block_bytes, min(offset, len(content)))
    pieces = list(text_pieces(job))
    assert b"".join(pieces) == content[job.start.offset :]
    assert all(pieces)
    assert job.progress.text_bytes == len(content) - job.start.offset
    with unpacked_file(job) as stream:
        assert stream.read() == content


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_progress_counts_the_bytes_on_disk(tmp_path: Path, compression: str):
    file = write_input(tmp_path, "x", "text", os.urandom(300_000).hex().encode(), compression)
    job = job_for(file)
    seen = [job.progress.raw_bytes for _ in text_pieces(job)]
    assert seen == sorted(seen)
    assert job.progress == ReadProgress(file.path.stat().st_size, 600_000)


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("cut", [1, 5, 20, 1000])
def test_a_truncated_file_is_noticed(tmp_path: Path, compression: str, cut: int):
    file = write_input(tmp_path, "x", "text", os.urandom(3000).hex().encode(), compression)
    file.path.write_bytes(file.path.read_bytes()[:-cut])
    with pytest.raises(DamagedFileError, match="middle"):
        list(text_pieces(job_for(file)))


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_damaged_or_plain_file_is_noticed(tmp_path: Path, compression: str):
    content = os.urandom(3000).hex().encode()
    flipped = bytearray(packed(content, compression))
    flipped[1000] ^= 16
    for bad in (bytes(flipped), content, packed(content, compression) + b"more"):
        file = write_input(tmp_path, "x", "text", b"", compression)
        file.path.write_bytes(bad)
        with pytest.raises(DamagedFileError):
            assert b"".join(text_pieces(job_for(file))) != content


def test_gzip_members_may_be_filled_up_with_zeros(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", b"", "gz")
    file.path.write_bytes(gzip.compress(b"one") + bytes(200_000) + gzip.compress(b"two") + bytes(5))
    assert b"".join(text_pieces(job_for(file))) == b"onetwo"


def test_zstd_files_with_long_windows_skippable_and_streamed_frames_are_read(tmp_path: Path):
    content = os.urandom(1000).hex().encode() * 300
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    sink = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(sink, closefd=False) as writer:
        writer.write(content)
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
    file = write_input(tmp_path, "x", "text", b"", "zst")
    file.path.write_bytes(skippable + sink.getvalue() + skippable + packed(b"end", "zst"))
    assert b"".join(text_pieces(job_for(file))) == content + b"end"


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_file_that_unpacks_to_very_much_takes_little_memory(tmp_path: Path, compression: str):
    file = write_input(tmp_path, "x", "text", bytes(1 << 27), compression)
    assert file.path.stat().st_size < 1 << 20
    tracemalloc.start()
    assert sum(map(len, text_pieces(job_for(file, 1 << 16)))) == 1 << 27
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 110 << 20  # one kilobyte of a zstd frame may hold 32 MiB, in two copies


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_packed_file_under_a_plain_name_is_refused(tmp_path: Path, compression: str):
    file = write_input(tmp_path, "x", "text", packed(b"text\n", compression))
    with pytest.raises(DamagedFileError, match=rf"its name end in \.{compression}"):
        list(text_pieces(job_for(file)))


@pytest.mark.parametrize("compression", PACKINGS)
def test_a_file_that_became_shorter_is_noticed(tmp_path: Path, compression: str):
    file = write_input(tmp_path, "x", "text", b"0123456789", compression)
    with pytest.raises(DamagedFileError, match="shorter than the 11 bytes"):
        list(text_pieces(job_for(file, offset=11)))


def test_a_part_ends_where_it_is_told(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", b"0123456789")
    job = dataclasses.replace(job_for(file, 3, offset=2), end=7)
    assert list(text_pieces(job)) == [b"234", b"56"]


def test_standard_input_is_read():
    program = (
        "from megatron_ext.data.sources.inputs import expand_inputs\n"
        "from megatron_ext.data.sources.pieces import ReadProgress\n"
        "from megatron_ext.data.sources.read import read_blocks\n"
        "print([b.parsed() for b in read_blocks(expand_inputs(['-']), ReadProgress())])"
    )
    done = subprocess.run([sys.executable, "-c", program], input=b'{"a": 1}\n', capture_output=True, check=True)
    assert done.stdout == b"[[{'a': 1}]]\n"
