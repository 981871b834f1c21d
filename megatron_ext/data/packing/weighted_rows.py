"""Weights of datasets: how many copies of each row go into the pool, drawn with a seed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ext.data.order import PermutedOrder
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

MAX_POOL_ROWS = 1 << 31
_GIVE = "Give each input a number of 0 or more, and one of them more than 0"


def read_weights_file(path: str, inputs: Sequence[str]) -> tuple[float, ...]:
    """The weights of `inputs` from a JSON object of input prefix -> weight.

    Raises:
        DataError: the file is unreadable or not such an object, or it and the inputs do not name the same datasets.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--weights-file {path} cannot be used ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"--weights-file {path} is not a JSON object", fix='It looks like {"data/a": 2.0, "data/b": 1}')
    given = {os.path.normpath(name): weight for name, weight in content.items()}
    wanted = [os.path.normpath(name) for name in inputs]
    for name in given:
        if name not in wanted:
            raise DataError(
                f"--weights-file {path} names {name}, which is missing in --input",
                f"The inputs are {', '.join(inputs)}",
                "Give the same prefixes in both",
            )
    for name in wanted:
        if name not in given:
            raise DataError(f"--weights-file {path} has no weight for the input {name}", fix=_GIVE)
        if isinstance(given[name], bool) or not isinstance(given[name], int | float):
            raise DataError(f"--weights-file {path} gives {name} the weight {given[name]!r}, not a number", fix=_GIVE)
    return tuple(float(given[name]) for name in wanted)


def check_weights(weights: Sequence[float], inputs: Sequence[str]) -> None:
    """Raise DataError for weights that are not one per input, negative, not finite, or all zero."""
    if len(weights) != len(inputs):
        raise DataError(f"--weights has {len(weights)} numbers for {len(inputs)} inputs", fix="Give one for each")
    for weight, name in zip(weights, inputs, strict=True):
        if not math.isfinite(weight) or weight < 0:
            raise DataError(f"the weight {weight} of {name} is not possible", fix=_GIVE)
    if not any(weights):
        raise DataError("all weights are 0", "Then there is nothing to pack", _GIVE)


def draw_copies(weights: Sequence[float], rows: Sequence[int], seed: int) -> Int64Array:
    """How many copies of each row the pool has, int64 `[sum of rows]`.

    A weight w gives floor(w) copies, and one more with probability w - floor(w).

    Args:
        weights: one per dataset, checked.
        rows: rows of each dataset.
        seed: the draw of a row depends on it, the dataset's place and the row's number alone.

    Raises:
        DataError: the pool would have more than 2^31 rows.
    """
    if sum(weight * count for weight, count in zip(weights, rows, strict=True)) > MAX_POOL_ROWS:
        raise DataError(
            f"the weights make a pool of more than {MAX_POOL_ROWS} rows", fix="Use smaller weights with the same ratios"
        )
    copies = []
    for place, (weight, count) in enumerate(zip(weights, rows, strict=True)):
        whole = math.floor(weight)
        draws = _uniform(f"{seed} copies {place}", count) if weight != whole else np.ones(count)
        copies.append(whole + (draws < weight - whole))
    return np.concatenate(copies).astype(np.int64)


def shuffled_pool(rows: Int64Array, copies: Int64Array, seed: int) -> Int64Array:
    """Each row as often as `copies` says, int64 `[pool]`, in a seeded pseudo-random order."""
    pool = np.repeat(rows, copies)
    if not len(pool):
        return pool
    return pool[PermutedOrder(len(pool), f"{seed} pool").sample_ids(0, len(pool))]


def _uniform(key: str, count: int) -> np.ndarray:
    """float64 `[count]` in [0, 1), made of the raw words of Philox, whose stream never changes between versions."""
    words = np.random.Philox(key=int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little"))
    return (words.random_raw(count) >> np.uint64(11)) * 2.0**-53


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it names a dataset twice")
    return content
