"""The loss mask beside a dataset: one byte per token that says what the model learns at that token."""

from __future__ import annotations

from pathlib import Path

NOT_LEARNED = 0
"""The token is read but never predicted: a prompt, a padding."""
LEARNED = 1
"""The token is predicted."""
LEARNED_AS_EOD = 2
"""At the token's place the end-of-document id is predicted instead (Baichuan 2's user token after an answer)."""
CODES = (NOT_LEARNED, LEARNED, LEARNED_AS_EOD)


def loss_mask_path(prefix: str | Path) -> Path:
    """The loss-mask file of a dataset: uint8 per token of `.bin`, in the same order.

    A dataset without this file is learned whole.
    """
    return Path(f"{prefix}.loss_mask")
