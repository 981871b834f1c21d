"""Opening a file that one run alone may write, and what to tell when the system refuses."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from megatron_ext import log
from megatron_ext.errors import DataError

_REMEDIES = {
    errno.ENOSPC: "Free disk space and run again",
    errno.EDQUOT: "Free disk space within the quota and run again",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f), or write to a file system that allows larger files",
    errno.EIO: "The disk or its file system fails; write to another",
    errno.EROFS: "The file system is mounted read-only; write to another",
}


def open_locked(path: Path, shown: Path, create: bool) -> int:
    """Open a file for reading and writing and lock it; the lock ends with the process, however it ends.

    Args:
        path: the file.
        shown: what messages call it: the file the user knows of.
        create: make it when it is missing.

    Returns:
        Its descriptor, which holds the lock until it is closed.

    Raises:
        DataError: it cannot be opened, or another run has locked it.
        FileNotFoundError: it is missing and `create` is off.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not create:
                raise
            raise DataError(
                f"the output {shown} cannot be written ({error.strerror})",
                fix=_REMEDIES.get(error.errno or 0, "Create its folder, or choose another --output-prefix"),
            ) from None
        try:
            _lock(descriptor, shown)
            if _names(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # Between the opening and the locking another run has renamed the file, which is finished now, or removed it.
        os.close(descriptor)


def writing_failed(path: Path, error: OSError) -> DataError:
    """The exception for a system that does not write."""
    return DataError(
        f"writing {path} failed ({error.strerror})", fix=_REMEDIES.get(error.errno or 0, "Mend that and run again")
    )


def _lock(descriptor: int, shown: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(
            f"another run is writing {shown}", fix="Wait for it, or choose another --output-prefix"
        ) from None
    except OSError as error:  # some network file systems know no locks
        log.warn(f"{shown} cannot be locked ({error.strerror}); let no other run write it at the same time")


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
