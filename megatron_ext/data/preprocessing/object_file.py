"""One object at a time from a process to another that it forked, through an unnamed file in memory.

A pipe holds 64 KiB: whoever sends more waits until the other side reads, and two that send to each other wait for
ever. The file takes an object of any size at once, so neither side waits; large bytes are copied into it and out of
it again, straight from and to the processes' memory.

Objects are written and read by multiprocessing's own pickler, as in its queues and pools: both ends are this very
program, and no byte of a data file is ever read as a pickle.
"""

from __future__ import annotations

import os
import tempfile
from multiprocessing.reduction import ForkingPickler
from typing import Any

_PROTOCOL = 5
_KEPT_BYTES = 16 << 20


class ObjectFile:
    """A file without a name whose descriptor a forked process inherits; both sides read and write it.

    Raises:
        OSError: this process has too many open files.
    """

    def __init__(self) -> None:
        self._descriptor = _unnamed_file()

    def write(self, value: object, start: int = 0) -> int:
        """Write an object from byte `start` on and return the byte after its last.

        Raises:
            OSError: there is no memory for it.
            Exception: whatever pickling the object raises.
        """
        stream = _Appending(self._descriptor, start)
        ForkingPickler(stream, _PROTOCOL).dump(value)
        return stream.offset

    def read(self, start: int, end: int) -> Any:
        """The object that stands in bytes `start` to `end`."""
        content = bytearray(end - start)
        rest = memoryview(content)
        while rest:
            count = os.preadv(self._descriptor, [rest], end - len(rest))
            if not count:
                raise EOFError(f"{len(rest)} of {len(content)} bytes are missing")
            rest = rest[count:]
        return ForkingPickler.loads(content)

    def forget(self) -> None:
        """Give the memory back if it is much; a little is kept for the next object."""
        if os.fstat(self._descriptor).st_size > _KEPT_BYTES:
            os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Give the memory back, once the other process has closed or ended too; harmless when called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("objects")
    with tempfile.TemporaryFile() as file:  # a system that is not Linux
        return os.dup(file.fileno())


class _Appending:
    """What a pickler writes to: bytes go to the file without a buffer between."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor = descriptor
        self.offset = offset

    def write(self, content: bytes | memoryview) -> int:
        rest = memoryview(content).cast("B")  # an array's bytes come as a view of its elements
        start = self.offset
        while rest:
            count = os.pwrite(self._descriptor, rest, self.offset)
            self.offset += count
            rest = rest[count:]
        return self.offset - start
