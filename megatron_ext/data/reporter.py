"""How far preprocessing is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from megatron_ext import log


class Reporter:
    """Shows documents/s, MB/s and tokens while they come in.

    Args:
        total_bytes: size of the input files on disk, None if unknown.
        log_interval: documents between two plain lines.
    """

    def __init__(self, total_bytes: int | None, log_interval: int) -> None:
        self._log_interval = log_interval
        self._next_line = log_interval
        self._start_s = time.monotonic()
        self._bar = _make_bar(total_bytes) if sys.stderr.isatty() else None

    def update(self, documents: int, raw_bytes: int, text_bytes: int, tokens: int) -> None:
        """Show the totals so far.

        Args:
            documents: records read.
            raw_bytes: bytes of the files as they are on disk.
            text_bytes: bytes after decompression.
            tokens: tokens written.
        """
        if self._bar is not None:
            self._bar.set_postfix_str(f"{documents:,} documents, {tokens:,} tokens", refresh=False)
            self._bar.update(raw_bytes - self._bar.n)
        elif documents >= self._next_line:
            self._next_line = (documents // self._log_interval + 1) * self._log_interval
            elapsed_s = max(time.monotonic() - self._start_s, 1e-9)
            log.info(
                f"Processed {documents} documents ({documents / elapsed_s:.1f} docs/s, "
                f"{text_bytes / elapsed_s / 1e6:.2f} MB/s), {tokens} tokens."
            )

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()


def _make_bar(total_bytes: int | None) -> Any:
    from tqdm import tqdm

    return tqdm(total=total_bytes, unit="B", unit_scale=True, desc="preprocessing", dynamic_ncols=True)
