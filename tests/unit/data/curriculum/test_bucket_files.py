"""Numbers come back from their buckets in the order in which they arrived."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_ext.data.curriculum.bucket_files import BucketFile


def test_a_bucket_keeps_the_order_of_arrival(tmp_path: Path):
    random = np.random.default_rng(0)
    buckets = random.integers(0, 9, 1000).astype(np.uint8)
    buckets[buckets == 4] = 5  # an empty one
    numbers = random.integers(0, 2**64, 1000, dtype=np.uint64)
    starts = np.append(0, np.cumsum(np.bincount(buckets, minlength=9)))
    with BucketFile(tmp_path, starts) as file:
        for first in range(0, 1000, 130):
            file.add(buckets[first : first + 130], numbers[first : first + 130])
        for bucket in range(9):
            assert np.array_equal(file.read(starts[bucket], starts[bucket + 1]), numbers[buckets == bucket])
    assert not list(tmp_path.iterdir())
