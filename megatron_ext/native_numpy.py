"""Numpy twins of the compiled operations in csrc/: the same values bit for bit, for machines without a compiler.

Those that mix, index and gather samples stand in `sampling_numpy.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
_FEISTEL_ROUNDS = 8
_NORMAL_BLOCK = 1 << 16
_ORDER_BLOCK = 1 << 20
_SEEN_AT_ONCE = 1 << 27

# Coefficients of algorithm AS 241 (PPND16), lowest power first: |u - 1/2| <= 0.425, then the middle, then the tail.
_CENTRAL = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_MIDDLE = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_TAIL = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def mix64(z: int) -> int:
    """splitmix64's finaliser: a bijection of 64-bit words, here on Python integers modulo 2^64.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def counter_normal(key: int, start: int, count: int) -> NDArray[np.float32]:
    """Standard normal float32 `[count]`: element i depends on `key` and `start + i` alone.

    Any slice of a longer call equals the call for that slice, so each rank fills just its part of a tensor.

    Args:
        key: the stream, in [0, 2^64).
        start: index of the first element, >= 0.
        count: number of elements, >= 0.

    Source: splitmix64 (Steele et al. 2014) for the bits; Wichura 1988, algorithm AS 241, for the inverse normal.
    """
    if start < 0 or count < 0:
        raise ValueError("counter_normal: start and count must not be negative")
    mixed_key = np.uint64(mix64((key + _GOLDEN) & _MASK))
    out = np.empty(count, np.float32)
    for first in range(0, count, _NORMAL_BLOCK):
        last = min(first + _NORMAL_BLOCK, count)
        index = np.arange(start + first, start + last, dtype=np.int64).astype(np.uint64)
        bits = _mix64_array(_mix64_array(index + np.uint64(_GOLDEN)) + mixed_key)
        u = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        out[first:last] = _inverse_normal(u).astype(np.float32)
    return out


def permute(key: int, size: int, indices: Int64Array) -> Int64Array:
    """Images int64 `[k]` of `indices` int64 `[k]` under a bijection of [0, size) chosen by `key`.

    Evaluated per index by a Feistel network with cycle walking: no array of `size` elements exists.

    Raises:
        ValueError: `size` is outside [1, 2^62].
        IndexError: an index is outside [0, size).

    Source: Luby and Rackoff 1988; Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """
    if not 1 <= size <= 1 << 62:
        raise ValueError("permute: size must be in [1, 2^62]")
    indices = np.ascontiguousarray(indices, dtype=np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise IndexError("permute: an index is outside [0, size)")
    half = 1
    while half < 31 and 1 << (2 * half) < size:
        half += 1
    keys = [np.uint64(mix64((key + (r + 1) * _GOLDEN) & _MASK)) for r in range(_FEISTEL_ROUNDS)]
    value = _feistel(indices.astype(np.uint64), keys, half)
    outside = np.flatnonzero(value >= np.uint64(size))
    while outside.size:
        value[outside] = _feistel(value[outside], keys, half)
        outside = outside[value[outside] >= np.uint64(size)]
    return value.astype(np.int64)


def misplaced_ids(ids: Int64Array, num_ids: int, ids_at_once: int) -> tuple[int, int]:
    """Places in an order, -1 for none: the first id outside [0, num_ids), and the first one that stood before.

    What stands twice is looked for only where every id exists.

    Args:
        ids: int64 `[k]`, contiguous.
        num_ids: ids that exist.
        ids_at_once: of so many ids (here 2^27 at most, a byte each) it is remembered at a time whether they were seen,
            and the order is read once for each of them; 0 does not look for what stands twice.

    Raises:
        ValueError: the ids are of another type or shape, or a number is not in [0, 2^62].
    """
    if ids.dtype != np.int64 or ids.ndim != 1 or not ids.flags.c_contiguous:
        raise ValueError("misplaced_ids: ids are one contiguous row of int64")
    if not 0 <= num_ids <= 1 << 62 or not 0 <= ids_at_once <= 1 << 62:
        raise ValueError("misplaced_ids: num_ids and ids_at_once must be in [0, 2^62]")
    for first in range(0, len(ids), _ORDER_BLOCK):
        block = ids[first : first + _ORDER_BLOCK]
        outside = np.flatnonzero((block < 0) | (block >= num_ids))
        if outside.size:
            return first + int(outside[0]), -1
    repeated, at_once = len(ids), min(ids_at_once, _SEEN_AT_ONCE)
    for lowest in range(0, num_ids, at_once) if at_once else ():
        repeated = _first_repeated(ids[:repeated], lowest, min(at_once, num_ids - lowest))
    return -1, repeated if repeated < len(ids) else -1


def pack_tokens(ids: NDArray[np.int32], lengths: Int64Array, eod: int, itemsize: int) -> tuple[bytes, Int64Array, int]:
    """The bytes of `.bin` for many texts: empty ones left out, `eod` after each other one, ids narrowed.

    Args:
        ids: int32 `[t]`, the ids of all texts one after the other.
        lengths: int64 `[n]`, ids of each text; their sum is t.
        eod: the end-of-document id, -1 for none.
        itemsize: 2 stores uint16, 4 stores int32.

    Returns:
        The bytes, the lengths of the documents int64 `[texts with ids]`, and the largest id (-1 for no documents).

    Raises:
        ValueError: an id does not fit the stored type; nothing is ever wrapped.
    """
    if itemsize not in (2, 4):
        raise ValueError("pack_tokens: itemsize is 2 (uint16) or 4 (int32)")
    if np.any(lengths < 0):
        raise ValueError("pack_tokens: a length is negative")
    if int(lengths.sum()) != ids.size:
        raise ValueError("pack_tokens: the lengths do not add up to the number of ids")
    documents = lengths[lengths > 0]
    tokens = ids.astype(np.int64)
    if eod >= 0 and documents.size:
        tokens = np.insert(tokens, np.cumsum(documents), eod)
        documents = documents + 1
    dtype = np.dtype("uint16" if itemsize == 2 else "int32")
    if tokens.size and (tokens.min() < 0 or tokens.max() > np.iinfo(dtype).max):
        raise ValueError(f"pack_tokens: ids from {tokens.min()} to {tokens.max()} do not fit {itemsize} bytes")
    return tokens.astype(dtype).tobytes(), documents, int(tokens.max()) if tokens.size else -1


def _first_repeated(ids: Int64Array, lowest: int, size: int) -> int:
    """The first place of an id of lowest .. lowest + size - 1 that stood before, or the length."""
    seen = np.zeros(size, bool)
    for first in range(0, len(ids), _ORDER_BLOCK):
        block = ids[first : first + _ORDER_BLOCK]
        places = np.flatnonzero((block >= lowest) & (block < lowest + size))
        here = block[places] - lowest
        again = seen[here]
        if again.any() or np.any(np.diff(np.sort(here)) == 0):
            is_new = np.zeros(len(here), bool)
            is_new[np.unique(here, return_index=True)[1]] = True
            return first + int(places[np.argmax(again | ~is_new)])
        seen[here] = True
    return len(ids)


def _mix64_array(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _feistel(value: NDArray[np.uint64], round_keys: list[np.uint64], half: int) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix64_array(right + round_key) & mask)
    return (left << np.uint64(half)) | right


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _logarithm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    mantissa, exponent = np.frexp(x)
    small = mantissa < 0.70710678118654752440
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = np.where(small, exponent - 1, exponent)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / 23.0)
    for k in range(21, 0, -2):
        series = series * square + 1.0 / k
    return 2.0 * s * series + exponent.astype(np.float64) * 0.69314718055994530942


def _inverse_normal(u: NDArray[np.float64]) -> NDArray[np.float64]:
    q = u - 0.5
    central = np.abs(q) <= 0.425
    z = np.empty_like(q)
    inner = q[central]
    r = 0.180625 - inner * inner
    z[central] = inner * _polynomial(_CENTRAL[0], r) / _polynomial(_CENTRAL[1], r)
    outer = q[~central]
    r = np.sqrt(-_logarithm(np.where(outer < 0.0, u[~central], 1.0 - u[~central])))
    middle = _polynomial(_MIDDLE[0], r - 1.6) / _polynomial(_MIDDLE[1], r - 1.6)
    tail = _polynomial(_TAIL[0], r - 5.0) / _polynomial(_TAIL[1], r - 5.0)
    magnitude = np.where(r <= 5.0, middle, tail)
    z[~central] = np.where(outer < 0.0, -magnitude, magnitude)
    return z
