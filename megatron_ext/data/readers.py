"""Input files to blocks of whole lines: plain, .gz and .zst, in order, with file and line numbers."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from megatron_ext.errors import DataError

BLOCK_BYTES = 1 << 19
_BOM = b"\xef\xbb\xbf"
_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class LineBlock:
    """Consecutive whole lines of one file.

    Attributes:
        file_index: position of the file in the list of inputs.
        first_line: number of the first line, counted from 1.
        content: the lines with their line ends; only a file's last line may lack one.
        num_lines: number of lines.
    """

    file_index: int
    first_line: int
    content: bytes
    num_lines: int

    def lines(self) -> list[bytes]:
        """The lines without their ends (LF or CR LF; no other character ends a line)."""
        lines = self.content.split(b"\n")
        if lines[-1] == b"":
            lines.pop()
        return [line[:-1] if line.endswith(b"\r") else line for line in lines]


@dataclass
class ReadProgress:
    """How far the reading is; updated by `read_blocks`.

    Attributes:
        raw_bytes: bytes of the files taken in, compressed ones as they are on disk.
        text_bytes: bytes after decompression.
        lines: lines of each input file.
    """

    raw_bytes: int = 0
    text_bytes: int = 0
    lines: dict[int, int] = field(default_factory=dict)


def expand_inputs(patterns: Sequence[str]) -> list[Path]:
    """The input files: names and glob patterns in the order given, the matches of a pattern sorted.

    Raises:
        DataError: a file is missing, unreadable, a folder, or named twice, or a pattern matches nothing.
    """
    paths: list[Path] = []
    for pattern in patterns:
        if os.path.exists(pattern) or not _GLOB_CHARACTERS & set(pattern):
            paths.append(Path(pattern))
            continue
        matches = sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise DataError(f"--input {pattern} matches no file")
        paths += [Path(match) for match in matches]
    seen: set[str] = set()
    for path in paths:
        _check_readable(path)
        real = os.path.realpath(path)
        if real in seen:
            raise DataError(f"--input names {path} twice", "Its records would be counted twice", "Name it once")
        seen.add(real)
    return paths


def file_size(path: Path) -> int | None:
    """Size of a regular file in bytes; None for a pipe."""
    return path.stat().st_size if path.is_file() else None


def read_blocks(paths: Sequence[Path], progress: ReadProgress, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Blocks of at least one line and, unless a single line is longer, about `block_bytes`.

    A UTF-8 byte order mark at the start of a file is dropped.

    Raises:
        DataError: a compressed file is damaged or ends too early, or reading fails.
    """
    for file_index, path in enumerate(paths):
        progress.lines[file_index] = 0
        for content in _whole_lines(path, progress, block_bytes):
            first_line = progress.lines[file_index] + 1
            content = content.removeprefix(_BOM) if first_line == 1 else content
            num_lines = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
            if num_lines:
                progress.lines[file_index] += num_lines
                yield LineBlock(file_index, first_line, content, num_lines)


def _whole_lines(path: Path, progress: ReadProgress, block_bytes: int) -> Iterator[bytes]:
    pending: list[bytes] = []  # pieces of a line, or of a block, not yet ended
    for piece in _text_pieces(path, progress, block_bytes):
        progress.text_bytes += len(piece)
        end = piece.rfind(b"\n") + 1
        if end == 0:
            pending.append(piece)
            continue
        yield b"".join([*pending, piece[:end]])
        pending = [piece[end:]] if end < len(piece) else []
    if pending:
        yield b"".join(pending)


def _text_pieces(path: Path, progress: ReadProgress, block_bytes: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            if path.suffix == ".gz":
                yield from _gunzip(stream, progress, block_bytes)
            elif path.suffix == ".zst":
                yield from _unzstd(path, stream, progress)
            else:
                while piece := stream.read(block_bytes):
                    progress.raw_bytes += len(piece)
                    yield piece
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, progress, str(error)) from None
    except OSError as error:
        raise DataError(
            f"reading {path} failed ({error.strerror or error})", fix="Check the disk and run again"
        ) from None


def _gunzip(stream: BinaryIO, progress: ReadProgress, block_bytes: int) -> Iterator[bytes]:
    before = progress.raw_bytes
    with gzip.GzipFile(fileobj=stream) as unpacked:
        while piece := unpacked.read(block_bytes):
            progress.raw_bytes = before + stream.tell() if stream.seekable() else before
            yield piece


def _unzstd(path: Path, stream: BinaryIO, progress: ReadProgress) -> Iterator[bytes]:
    """Text of one or several zstd frames; unlike the library's stream reader it notices a missing end."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    inside = False  # within a frame whose end has not come yet
    try:
        while packed := stream.read(1 << 17):
            progress.raw_bytes += len(packed)
            while packed:
                piece = frame.decompress(packed)
                inside = not frame.eof
                packed = frame.unused_data if frame.eof else b""
                frame = decompressor.decompressobj() if frame.eof else frame
                if piece:
                    yield piece
    except zstandard.ZstdError as error:
        raise _damaged(path, progress, str(error)) from None
    if inside:
        raise _damaged(path, progress, "it ends in the middle of a frame")


def _check_readable(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"--input {path} is a folder", fix=f"Name its files, for example '{path}/*.jsonl'")
    try:
        with path.open("rb") if path.is_file() or not path.exists() else open(os.devnull, "rb"):
            pass
    except OSError as error:
        raise DataError(f"--input {path} cannot be read ({error.strerror})") from None


def _damaged(path: Path, progress: ReadProgress, why: str) -> DataError:
    lines = list(progress.lines.values())[-1] if progress.lines else 0
    return DataError(
        f"{path} is damaged after line {lines} ({why})",
        "A compressed file that cannot be unpacked to its end would lose records without a trace",
        "Copy the file again, or repack what can be saved",
    )
