"""The data operations: the compiled ones of csrc/, or with one warning their numpy twins, which give the same values.

Functions (shapes, dtypes and formulas are in the twins' docstrings, `megatron_ext/native_numpy.py`):
`counter_normal`, `permute`, `blend`, `gather_tokens`, `pack_tokens`. `COMPILED` tells which of the two is in use.
"""

from __future__ import annotations

from megatron_ext import log

try:
    from megatron_ext._native import blend, counter_normal, gather_tokens, pack_tokens, permute

    COMPILED = True
except ImportError as _error:
    from megatron_ext.native_numpy import blend, counter_normal, gather_tokens, pack_tokens, permute

    COMPILED = False
    log.warn_once(
        f"the compiled extension megatron_ext._native is not usable ({_error}); the numpy versions are used instead: "
        "same values, slower. With a C++ compiler installed, run `make install` to build it."
    )

__all__ = ["COMPILED", "blend", "counter_normal", "gather_tokens", "pack_tokens", "permute"]
