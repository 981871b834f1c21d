"""Megatron-LM flags that have no meaning here, each with the reason: an accepted flag always does something."""

from __future__ import annotations

REFUSED: dict[str, str] = {}
REFUSED_PREFIXES: dict[str, str] = {}


def refusal(flag: str) -> str | None:
    """Why a Megatron-LM flag is not accepted and what to use instead; None for a flag that is not in the tables."""
    if flag in REFUSED:
        return REFUSED[flag]
    return next((reason for prefix, reason in REFUSED_PREFIXES.items() if flag.startswith(prefix)), None)
