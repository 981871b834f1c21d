"""A file that is being made: invisible under its final name until it is complete (law L7)."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Self

from megatron_ext.atomic import fsync_path
from megatron_ext.data.preprocessing.output_file import open_locked, writing_failed
from megatron_ext.errors import DataError

_BLOCK = 1 << 20
BEGIN_ANEW = "Begin anew: give --overwrite in place of --resume"
"""What to do when the files of a killed run are not what its journal says."""


def partial_path(path: Path) -> Path:
    """Where a file stands until it is published."""
    return path.with_name(path.name + ".partial")


class PendingFile:
    """Writes `PATH.partial`, counting and hashing, and gives it its final name in `publish`.

    The partial file is locked, so two runs cannot write the same output; what a killed run left is used anew, or
    continued by `resume`.

    Raises:
        DataError: the folder is missing or not writable, or another run is writing this output.
    """

    def __init__(self, path: Path) -> None:
        self._open(path, create=True)
        try:
            os.ftruncate(self._stream.fileno(), 0)
        except OSError as error:
            self._stream.close()
            raise writing_failed(path, error) from None

    @classmethod
    def resume(cls, path: Path, size_bytes: int, sha256: str | None = None) -> Self:
        """Continue a `PATH.partial` of a killed run after its first `size_bytes`; what follows them is cut off.

        Reads these bytes once, for the checksum of the whole file. A file of which nothing is needed may be missing.

        Args:
            path: the final name.
            size_bytes: how much of it is good: what had been written at some `sync`.
            sha256: its checksum at that time, if known; compared.

        Raises:
            DataError: the partial file is missing, shorter than that, or has other content; another run is writing
                it; or the disk fails.
        """
        file = cls.__new__(cls)
        try:
            file._open(path, create=size_bytes == 0)
        except FileNotFoundError:
            raise DataError(
                f"there is no {partial_path(path)} to go on with",
                f"The journal says that {size_bytes} bytes of it were written",
                BEGIN_ANEW,
            ) from None
        try:
            file._take_over(size_bytes, sha256)
        except OSError as error:
            file._stream.close()
            raise writing_failed(file.partial, error) from None
        except BaseException:
            file._stream.close()
            raise
        return file

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            DataError: the disk is full or fails.
        """
        try:
            self._stream.write(content)
        except OSError as error:
            raise writing_failed(self.path, error) from None
        self._hash.update(content)
        self.size_bytes += len(content)

    def sync(self) -> None:
        """Force everything written so far to disk; `resume` can go on from here.

        Raises:
            DataError: the disk is full or fails.
        """
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise writing_failed(self.path, error) from None

    def finish(self) -> None:
        """Force everything written to disk; nothing can be appended afterwards."""
        self.sync()

    def publish(self) -> None:
        """Rename the finished file to its final name, on disk when this returns."""
        os.replace(self.partial, self.path)
        fsync_path(self.path.parent)
        self._stream.close()

    def discard(self) -> None:
        """Remove the partial file; harmless after `publish` and `keep`."""
        if not self._stream.closed:
            self.partial.unlink(missing_ok=True)
            self._close()

    def keep(self) -> None:
        """Close the partial file and let it lie, for `resume`; harmless after `publish` and `discard`."""
        self._close()

    @property
    def sha256(self) -> str:
        """The sha256 of what was written so far, in hexadecimal digits."""
        return self._hash.hexdigest()

    def _open(self, path: Path, create: bool) -> None:
        self.path = path
        self.partial = partial_path(path)
        self._stream = os.fdopen(open_locked(self.partial, path, create), "r+b", buffering=_BLOCK)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def _take_over(self, size_bytes: int, sha256: str | None) -> None:
        found = os.fstat(self._stream.fileno()).st_size
        if found < size_bytes:
            raise DataError(
                f"{self.partial} has {found} bytes",
                f"The journal says that {size_bytes} were written",
                BEGIN_ANEW,
            )
        os.ftruncate(self._stream.fileno(), size_bytes)
        while block := self._stream.read(_BLOCK):
            self._hash.update(block)
            self.size_bytes += len(block)
        if self.size_bytes != size_bytes:
            raise DataError(f"{self.partial} changed while it was read", fix=BEGIN_ANEW)
        if sha256 is not None and self.sha256 != sha256:
            raise DataError(
                f"{self.partial} is damaged: the sha256 of its first {size_bytes} bytes is {self.sha256}",
                f"The journal says {sha256}",
                BEGIN_ANEW,
            )

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the last flush of what nobody will read
            self._stream.close()
