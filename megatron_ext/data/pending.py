"""A file that is being made: invisible under its final name until it is complete (law L7)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

from megatron_ext.atomic import fsync_path
from megatron_ext.errors import DataError


class PendingFile:
    """Writes `PATH.partial`, counting and hashing, and gives it its final name in `publish`.

    The partial file is locked, so two runs cannot write the same output; what a killed run left is used anew.

    Raises:
        DataError: the folder is missing or not writable, or another run is writing this output.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        try:
            descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(
                f"the output {path} cannot be written ({error.strerror})",
                fix="Create its folder, or choose another --output-prefix",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise DataError(
                f"another run is writing {path}", fix="Wait for it, or choose another --output-prefix"
            ) from None
        os.ftruncate(descriptor, 0)
        self._stream = os.fdopen(descriptor, "wb", buffering=1 << 20)
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes.

        Raises:
            DataError: the disk is full or fails.
        """
        try:
            self._stream.write(content)
        except OSError as error:
            raise self._failure(error) from None
        self._hash.update(content)
        self.size_bytes += len(content)

    def finish(self) -> None:
        """Force everything written to disk; nothing can be appended afterwards."""
        self.sync()

    def sync(self) -> None:
        """Force everything written so far to disk; more can be appended."""
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._failure(error) from None

    def publish(self) -> None:
        """Rename the finished file to its final name, on disk when this returns."""
        os.replace(self.partial, self.path)
        fsync_path(self.path.parent)
        self._stream.close()

    def discard(self) -> None:
        """Remove the partial file; harmless after `publish`."""
        if not self._stream.closed:
            self.partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a full disk refuses the last flush of a file that is gone already
                self._stream.close()

    def keep(self) -> None:
        """Close the partial file and leave it where it is, for a run that goes on from it; harmless after `publish`."""
        with contextlib.suppress(OSError):
            self._stream.close()

    @property
    def sha256(self) -> str:
        """The sha256 of what was written so far, in hexadecimal digits."""
        return self._hash.hexdigest()

    def _failure(self, error: OSError) -> DataError:
        return DataError(f"writing {self.path} failed ({error.strerror})", fix="Free disk space and run again")
