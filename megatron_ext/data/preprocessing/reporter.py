"""How far preprocessing is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from megatron_ext import log

SECONDS_BETWEEN_LINES = 5.0
"""A fast run would otherwise fill the log: it passes --log-interval documents many times a second."""


class Reporter:
    """Shows documents/s, MB/s, tokens and the time that is left while they come in.

    Args:
        total_bytes: size of the input files on disk, None if unknown.
        log_interval: documents between two plain lines, at least; they also keep SECONDS_BETWEEN_LINES.
        done_bytes: how much of `total_bytes` an earlier run did, where this one resumes.
    """

    def __init__(self, total_bytes: int | None, log_interval: int, done_bytes: int = 0) -> None:
        self._total_bytes = total_bytes
        self._log_interval = log_interval
        self._start_s = self._last_line_s = time.monotonic()
        self._last_documents = 0
        self._done_bytes = done_bytes
        self._bar = _make_bar(total_bytes, done_bytes) if sys.stderr.isatty() else None

    def update(self, documents: int, raw_bytes: int, text_bytes: int, tokens: int) -> None:
        """Show the totals so far.

        Args:
            documents: records read.
            raw_bytes: bytes of the files as they are on disk, those of `done_bytes` among them.
            text_bytes: bytes after decompression.
            tokens: tokens written.
        """
        if self._bar is not None:
            self._bar.set_postfix_str(f"{documents:,} documents, {tokens:,} tokens", refresh=False)
            self._bar.update(raw_bytes - self._bar.n)
            return
        if documents - self._last_documents < self._log_interval:
            return
        now = time.monotonic()
        if now - self._last_line_s < SECONDS_BETWEEN_LINES:
            return
        self._last_documents, self._last_line_s = documents, now
        log.info(self._line(documents, raw_bytes, text_bytes, tokens, max(now - self._start_s, 1e-9)))

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, documents: int, raw_bytes: int, text_bytes: int, tokens: int, elapsed_s: float) -> str:
        line = (
            f"Processed {documents} documents ({documents / elapsed_s:.1f} docs/s, "
            f"{text_bytes / elapsed_s / 1e6:.2f} MB/s), {tokens} tokens"
        )
        fresh_bytes = raw_bytes - self._done_bytes
        if not self._total_bytes or fresh_bytes <= 0:
            return line + "."
        left_s = (self._total_bytes - raw_bytes) * elapsed_s / fresh_bytes
        return f"{line}, {100 * raw_bytes / self._total_bytes:.0f} % of the input, {duration(left_s)} left."


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _make_bar(total_bytes: int | None, done_bytes: int) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total_bytes, initial=done_bytes, unit="B", unit_scale=True, desc="preprocessing", dynamic_ncols=True
    )
