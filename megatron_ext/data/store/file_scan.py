"""One pass over a file of any size: each block of it is read once and seen by everything that wants to see it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from megatron_ext.errors import DataError

BLOCK_BYTES = 1 << 22
"""A multiple of every token size, so that no token is cut."""

Observer = Callable[[memoryview], object]


def scan_file(
    path: Path, observers: Sequence[Observer], advance: Callable[[int], object], block_bytes: int = BLOCK_BYTES
) -> None:
    """Hand the bytes of a file to all observers, block by block and in order.

    Each observer has a thread; while all of them look at one block, the next is read. A block may not be kept: its
    memory is used again.

    Args:
        path: the file.
        observers: each is called with every block; what one raises ends the scan.
        advance: told the number of bytes after each block.
        block_bytes: bytes of a block; only the last one is shorter.

    Raises:
        DataError: the file cannot be read.
    """
    pending: list[Future[object]] = []
    try:
        with path.open("rb") as stream, ThreadPoolExecutor(len(observers)) as pool:
            block_bytes = min(block_bytes, os.fstat(stream.fileno()).st_size // 8 * 8 + 8)  # small files, small buffers
            for buffer in itertools.cycle((bytearray(block_bytes), bytearray(block_bytes))):
                block = memoryview(buffer)[: stream.readinto(buffer)]
                for seen in pending:
                    seen.result()
                if not block:
                    break
                pending = [pool.submit(observer, block) for observer in observers]
                advance(len(block))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error})", fix="Check the disk, or copy the dataset again"
        ) from None
