"""The text of one input file in pieces: opened, unpacked, from any offset on; and how far the reading is."""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, BinaryIO

from megatron_ext.data.sources.blocks import BLOCK_BYTES, Position
from megatron_ext.data.sources.inputs import InputFile

MAX_RECORD_BYTES = 1 << 30
_PACKED_BYTES = 1 << 17  # read at a time from a .gz file
# A zstd frame may unpack to 32,768 times its size, and the library gives what it has all at once: it gets little.
_ZSTD_BYTES = 1 << 10
_ZSTD_WINDOW = 1 << 31  # as `zstd --long=31` writes
_MAGIC = {b"\x1f\x8b": ("gzip", ".gz"), b"\x28\xb5\x2f\xfd": ("zstd", ".zst")}


class DamagedFileError(Exception):
    """The bytes of a file are not what they must be; the reader adds the file's name and the place."""


@dataclass
class ReadProgress:
    """How far the reading is; updated while blocks are taken.

    Attributes:
        raw_bytes: bytes of the inputs behind us as they are on disk, those skipped on resume too: for the fraction.
        text_bytes: bytes after decompression that this run has read: for the rate.
        records: records of each input file; after a resume the caller fills in those of the files before.
    """

    raw_bytes: int = 0
    text_bytes: int = 0
    records: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadOptions:
    """What is seldom changed.

    Attributes:
        max_record_bytes: a longer record is skipped without being held in memory, and quarantined as "too long".
        columns: of parquet files only these are read; None reads all.
    """

    max_record_bytes: int = MAX_RECORD_BYTES
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class FileJob:
    """What to read of one file.

    Attributes:
        file: the file.
        start: where to begin; its `record` is the number of records before it.
        end: offset to stop at, a line start; None for the end of the file.
        progress: where to tell how far the reading is.
        block_bytes: about how many bytes a block has.
        options: what is seldom changed.
    """

    file: InputFile
    start: Position
    end: int | None
    progress: ReadProgress
    block_bytes: int = BLOCK_BYTES
    options: ReadOptions = ReadOptions()


def open_raw(file: InputFile) -> BinaryIO:
    """The bytes of a file as they are on disk."""
    return open(0, "rb", closefd=False) if file.path is None else file.path.open("rb")


def text_pieces(job: FileJob, start: int | None = None) -> Iterator[bytes]:
    """The file's bytes after decompression from `start` (by default where the job begins) on, none of them empty.

    Raises:
        DamagedFileError: a compressed file is damaged or ends too early, or the file is shorter than `start`.
        OSError: reading fails.
    """
    start = job.start.offset if start is None else start
    with open_raw(job.file) as stream:
        if not job.file.compression:
            pieces = _plain(job, stream, start)
        else:
            unpack = _gunzip if job.file.compression == "gz" else _unzstd
            pieces = _from_offset(unpack(stream, job.progress, job.block_bytes), start)
        for piece in pieces:
            job.progress.text_bytes += len(piece)
            yield piece


@contextlib.contextmanager
def unpacked_file(job: FileJob) -> Iterator[IO[bytes]]:
    """A compressed or unseekable input as an unnamed temporary file, gone when the context ends.

    Raises:
        DamagedFileError: a compressed file is damaged or ends too early.
        OSError: reading or writing fails.
    """
    text_bytes = job.progress.text_bytes
    with tempfile.TemporaryFile() as stream:
        for piece in text_pieces(job, 0):
            stream.write(piece)
        stream.seek(0)
        job.progress.text_bytes = text_bytes  # what is read from here counts
        yield stream


def _plain(job: FileJob, stream: BinaryIO, start: int) -> Iterator[bytes]:
    if start:
        if os.fstat(stream.fileno()).st_size < start:
            raise DamagedFileError(f"it is shorter than the {start} bytes read of it before")
        stream.seek(start)
    place, end = start, job.end
    while piece := stream.read(job.block_bytes if end is None else max(0, min(job.block_bytes, end - place))):
        if place == 0:
            _refuse_packed(piece)
        place += len(piece)
        job.progress.raw_bytes += len(piece)
        yield piece


def _refuse_packed(first: bytes) -> None:
    for magic, (packing, suffix) in _MAGIC.items():
        if first.startswith(magic):
            raise DamagedFileError(f"it is packed with {packing}: unpack it, or let its name end in {suffix}")


def _from_offset(pieces: Iterator[bytes], offset: int) -> Iterator[bytes]:
    place = 0
    for piece in pieces:
        if place + len(piece) > offset:
            yield piece[max(0, offset - place) :]
        place += len(piece)
    if place < offset:
        raise DamagedFileError(f"it is shorter than the {offset} bytes read of it before")


def _gunzip(stream: BinaryIO, progress: ReadProgress, piece_bytes: int) -> Iterator[bytes]:
    """Text of one or several gzip members; zeros may fill up the end of each, as tapes have them."""
    member, inside, num_members, full = zlib.decompressobj(31), False, 0, False
    try:
        while packed := stream.read(_PACKED_BYTES):
            progress.raw_bytes += len(packed)
            while packed or full:
                packed = packed if inside or not num_members else packed.lstrip(b"\0")
                piece = member.decompress(packed, piece_bytes)
                full = len(piece) == piece_bytes  # then more may be waiting inside, even without further input
                inside = not member.eof and (inside or bool(packed))
                packed = member.unused_data if member.eof else member.unconsumed_tail
                if member.eof:
                    member, num_members, full = zlib.decompressobj(31), num_members + 1, False
                if piece:
                    yield piece
    except zlib.error as error:
        raise DamagedFileError(str(error)) from None
    if inside:
        raise DamagedFileError("it ends in the middle of a gzip member")


def _unzstd(stream: BinaryIO, progress: ReadProgress, piece_bytes: int) -> Iterator[bytes]:
    """Text of one or several zstd frames; unlike the library's stream reader it notices a missing end."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame, inside = decompressor.decompressobj(), False
    held: list[bytes] = []
    num_held = 0
    try:
        while packed := stream.read(_ZSTD_BYTES):
            progress.raw_bytes += len(packed)
            while packed:
                held.append(frame.decompress(packed))
                num_held += len(held[-1])
                inside = not frame.eof
                packed = frame.unused_data if frame.eof else b""
                frame = decompressor.decompressobj() if frame.eof else frame
            if num_held >= piece_bytes:
                yield b"".join(held)  # of a single piece this is the piece itself
                held, num_held = [], 0
    except zstandard.ZstdError as error:
        raise DamagedFileError(str(error)) from None
    if num_held:
        yield b"".join(held)
    if inside:
        raise DamagedFileError("it ends in the middle of a zstd frame")
