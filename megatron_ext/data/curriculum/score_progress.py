"""How far scoring is: a bar on a terminal, plain lines with the time that is left elsewhere."""

from __future__ import annotations

import sys
import time

from megatron_ext import log
from megatron_ext.data.preprocessing.reporter import SECONDS_BETWEEN_LINES, duration


class ScoreReporter:
    """Shows tokens done, tokens/s and the time that is left.

    Args:
        what: what is done, for the bar and the lines.
        total_tokens: tokens of the dataset.
        done_tokens: how many of them an earlier run did, where this one resumes.
    """

    def __init__(self, what: str, total_tokens: int, done_tokens: int = 0) -> None:
        from tqdm import tqdm

        self._what, self._total, self._begun_at = what, max(1, total_tokens), done_tokens
        self._done = done_tokens
        self._start_s = self._last_line_s = time.monotonic()
        self._bar = (
            tqdm(total=total_tokens, initial=done_tokens, unit="tok", unit_scale=True, desc=what, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def advance(self, tokens: int) -> None:
        """So many tokens more are done."""
        self._done += tokens
        if self._bar is not None:
            self._bar.update(tokens)
            return
        now = time.monotonic()
        if now - self._last_line_s >= SECONDS_BETWEEN_LINES:
            self._last_line_s = now
            log.info(self._line(now - self._start_s))

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, elapsed_s: float) -> str:
        rate = max(1, self._done - self._begun_at) / max(elapsed_s, 1e-9)
        left = duration((self._total - self._done) / rate)
        share = 100 * self._done / self._total
        return f"{self._what}: {self._done:,} tokens, {share:.0f} %, {rate / 1e6:.2f} million tokens/s, {left} left"
