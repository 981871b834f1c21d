"""The data operations: the compiled ones of csrc/, or with one warning their numpy twins, which give the same values.

Functions (shapes, dtypes and formulas are in the twins' docstrings): `counter_normal`, `permute`, `misplaced_ids`,
`pack_tokens` (`megatron_ext/native_numpy.py`); `blend`, `blend_all`, `spread`, `spread_counts`, `sample_index`,
`gather_windows`, `gather_documents` (`megatron_ext/sampling_numpy.py`). `COMPILED` tells which of the two is in use.

`bpe` is the compiled module itself, for its encoders `SentencePieceBpe` and `ByteLevelBpe`, or None without the
extension. They have no numpy twin: what stands in for them is the library whose ids they give, which the tokenizers
(`megatron_ext/tokenizer/`) then use.
"""

from __future__ import annotations

from typing import Any

from megatron_ext import log

try:
    from megatron_ext import _native
    from megatron_ext._native import (
        blend,
        blend_all,
        counter_normal,
        gather_documents,
        gather_windows,
        misplaced_ids,
        pack_tokens,
        permute,
        sample_index,
        spread,
        spread_counts,
    )

    bpe: Any = _native
    COMPILED = True
except ImportError as _error:
    from megatron_ext.native_numpy import counter_normal, misplaced_ids, pack_tokens, permute
    from megatron_ext.sampling_numpy import (
        blend,
        blend_all,
        gather_documents,
        gather_windows,
        sample_index,
        spread,
        spread_counts,
    )

    bpe = None
    COMPILED = False
    log.warn_once(
        f"the compiled extension megatron_ext._native is not usable ({_error}); the numpy versions are used instead: "
        "same values, slower. With a C++ compiler installed, run `make install` to build it."
    )

__all__ = [
    "COMPILED",
    "blend",
    "blend_all",
    "bpe",
    "counter_normal",
    "gather_documents",
    "gather_windows",
    "misplaced_ids",
    "pack_tokens",
    "permute",
    "sample_index",
    "spread",
    "spread_counts",
]
