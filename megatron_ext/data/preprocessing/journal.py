"""An append-only record of how far a run has come, from which the next run goes on after any kind of death.

Format: one line per entry, `CHECKSUM JSON`. The checksum is the first 16 hexadecimal digits of the sha256 of the line
before's checksum and this line's JSON, so that no line can be changed, lost, doubled or moved unnoticed. The first
entry is the header: the format, its version, and what the run is.

An entry is on disk before the next one is written. So a death, of the machine too, can spoil the last line alone, and
a last line that does not hold is dropped: the entry before it tells of less work, and all of it was done. A line in
the middle that does not hold means damage and is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ext.atomic import fsync_path
from megatron_ext.data.preprocessing.output_file import open_locked, writing_failed
from megatron_ext.data.preprocessing.pending import BEGIN_ANEW, partial_path
from megatron_ext.errors import DataError

FORMAT = "megatron_ext journal"
FORMAT_VERSION = 1
_DIGITS = 16


class Journal:
    """A journal that is being written; `begin` or `reopen` makes one. The file is locked until it is closed.

    Args:
        path: the file.
        descriptor: the file, open and locked.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._checksum = b""  # of the last line that holds
        self._end = 0  # one past the last line that holds

    @classmethod
    def begin(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """A new journal, in place of any that is there; it takes its name when its header is on disk.

        Args:
            path: the file.
            header: what the run is, in plain JSON values.

        Raises:
            DataError: the file cannot be written, or another run is writing it.
        """
        beside = partial_path(path)
        journal = cls(path, open_locked(beside, path, create=True))
        with journal._closing_on_error(), contextlib.ExitStack() as leftovers:
            leftovers.callback(beside.unlink, missing_ok=True)
            with contextlib.suppress(FileNotFoundError):  # a run that has begun has its lock there
                leftovers.callback(os.close, open_locked(path, path, create=False))
            journal._cut()
            journal._write({"format": FORMAT, "format_version": FORMAT_VERSION, "header": header})
            os.replace(beside, path)
            fsync_path(path.parent)
        return journal

    @classmethod
    def reopen(cls, path: Path) -> tuple[Journal, dict[str, Any], dict[str, Any] | None]:
        """The journal of a run that has ended, ready for more entries; a spoilt last line is cut off.

        Returns:
            The journal, its header, and its last entry (None when there is none but the header).

        Raises:
            DataError: there is none, another run is writing it, or it is damaged.
        """
        try:
            journal = cls(path, open_locked(path, path, create=False))
        except FileNotFoundError:
            raise DataError(
                f"there is no journal {path} to go on with",
                "A run leaves one until it has published its outputs",
                "Run again without --resume",
            ) from None
        with journal._closing_on_error():
            with open(journal._descriptor, "rb", closefd=False) as stream:
                header, last = journal._read(stream)
            journal._cut()
        return journal, header, last

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of plain JSON values; on disk when this returns.

        Raises:
            DataError: the disk is full or fails; the journal is as it was before.
            TypeError: a value is not one of JSON.
            ValueError: a value is not a number (NaN) or infinite.
        """
        self._write(entry)

    def close(self) -> None:
        """Let the journal lie, for `reopen`; harmless when called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Delete the journal: what it tells of is complete. Harmless after `close`, which it does not undo."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            self.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        content = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode("ascii")
        checksum = _checksum(self._checksum, content)
        line = b"%s %s\n" % (checksum, content)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.pwrite(self._descriptor, rest, self._end + len(line) - len(rest)) :]
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError, DataError):
                self._cut()
            raise writing_failed(self._path, error) from None
        self._checksum = checksum
        self._end += len(line)

    def _read(self, lines: Iterable[bytes]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The header and the last entry that holds; the journal goes on after it."""
        header: dict[str, Any] | None = None
        last: dict[str, Any] | None = None
        broken = 0
        for number, line in enumerate(lines, 1):
            if broken:
                raise self._damaged(f"line {broken} is not as it was written, and others follow it")
            checksum, _, content = line.removesuffix(b"\n").partition(b" ")
            if not line.endswith(b"\n") or checksum != _checksum(self._checksum, content):
                broken = number
                continue
            entry = json.loads(content)
            header, last = (entry, None) if header is None else (header, entry)
            self._checksum = checksum
            self._end += len(line)
        if header is None:
            raise self._damaged("its first line is not as it was written, or it is no journal")
        if header.get("format") != FORMAT or header.get("format_version") != FORMAT_VERSION:
            raise self._damaged(
                f"it is {header.get('format')!r} of version {header.get('format_version')!r}; this program knows "
                f"{FORMAT!r} of version {FORMAT_VERSION}"
            )
        return header["header"], last

    def _cut(self) -> None:
        """Cut off whatever stands after the last line that holds."""
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError as error:
            raise writing_failed(self._path, error) from None

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            raise DataError(f"the journal {self._path} cannot be used ({error.strerror})") from None
        except BaseException:
            self.close()
            raise

    def _damaged(self, why: str) -> DataError:
        return DataError(f"the journal {self._path} cannot be used: {why}", fix=BEGIN_ANEW)


def _checksum(before: bytes, content: bytes) -> bytes:
    return hashlib.sha256(before + content).hexdigest()[:_DIGITS].encode("ascii")
