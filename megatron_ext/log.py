"""The rank-aware logger: one line from one rank, at once, where people look for it."""

from __future__ import annotations

import functools
import os
import sys


def rank() -> int:
    """This process's global rank as torchrun set it; 0 for a program started without torchrun."""
    return int(os.environ.get("RANK", "0"))


def info(message: str) -> None:
    """Write one line to stdout on rank 0."""
    if rank() == 0:
        _write(sys.stdout, message)


def info_any_rank(message: str) -> None:
    """Write one line to stdout on the calling rank (the last pipeline stage knows the loss)."""
    _write(sys.stdout, message)


def warn(message: str) -> None:
    """Write one line to stderr on rank 0, marked as a warning."""
    if rank() == 0:
        _write(sys.stderr, f"warning: {message}")


@functools.cache
def warn_once(message: str) -> None:
    """Write a warning the first time this text comes up in this process."""
    warn(message)


def _write(stream: object, message: str) -> None:
    print(message, file=stream, flush=True)  # type: ignore[call-overload]
