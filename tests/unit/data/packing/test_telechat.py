"""TeleChat's packing: golden blocks, conservation, epochs, and the published endless loop as an error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import PackedPart
from megatron_ext.data.packing.telechat import PackedRows, pack_pool, plan_first_fit
from megatron_ext.data.packing.weighted_rows import shuffled_pool
from megatron_ext.errors import DataError
from tests.unit.data.packing.finished import PAD, blocks_of, finished, settings_for
from tests.unit.data.packing.published_rules import published_scan


def rows_of(part: PackedPart, joined: JoinedDatasets) -> list[list[int]]:
    """The document numbers of each block."""
    by_start = {int(joined.offsets[number]): number for number in joined.documents()}
    return [[by_start[start] for start, _ in spans] for spans in blocks_of(part)]


def planned(joined: JoinedDatasets, **values: Any) -> PackedPart:
    (part,) = plan_first_fit(joined, settings_for("first-fit", joined, **{"pad_id": PAD, **values})).parts
    return part


def joined_of(folder: Path, lengths: list[int]) -> JoinedDatasets:
    return JoinedDatasets([finished(folder / "rows", [[7] * length for length in lengths])])


def test_a_pool_by_hand():
    # blocks of 30 take fewer than 20 tokens: row 2 is too long; in the pool's order 3, 0, 1, 4, 0
    lengths = np.array([6, 12, 20, 9, 4])
    wanted = settings_for("first-fit", ["a"], seq_length=30)
    packed = pack_pool(np.array([3, 2, 0, 1, 4, 0]), lengths, lengths < 20, wanted)
    assert packed.bounds.tolist() == [0, 3, 5]
    assert packed.rows.tolist() == [3, 0, 4, 1, 0]  # 9 + 6 + 4 = 19 and 12 + 6 = 18


def test_parts_are_contiguous_and_the_last_takes_the_rest():
    lengths = np.full(5, 15)
    wanted = settings_for("first-fit", ["a"], seq_length=30, pack_shards=2)
    packed = pack_pool(np.arange(5), lengths, lengths < 20, wanted)
    assert packed.rows.tolist() == [0, 1, 2, 3, 4]
    wanted = settings_for("first-fit", ["a"], seq_length=30, pack_shards=2, num_samples=8)
    packed = pack_pool(np.arange(5), lengths, lengths < 20, wanted)
    # four blocks each: rows 0 and 1 twice, in the same order; rows 2 to 4 and then 2 again
    assert packed.rows.tolist() == [0, 1, 0, 1, 2, 3, 4, 2]
    wanted = settings_for("first-fit", ["a"], seq_length=30, pack_shards=2, num_samples=2)
    assert pack_pool(np.arange(5), lengths, lengths < 20, wanted).rows.tolist() == [0, 2]


def test_a_part_without_rows_cannot_give_its_share():
    lengths = np.array([50, 15])
    wanted = settings_for("first-fit", ["a"], seq_length=30, pack_shards=2, num_samples=2)
    with pytest.raises(DataError, match="part 1 of 2 has no row"):
        pack_pool(np.arange(2), lengths, lengths < 20, wanted)
    wanted = settings_for("first-fit", ["a"], seq_length=30, pack_shards=2)
    assert pack_pool(np.arange(2), lengths, lengths < 20, wanted).rows.tolist() == [1]


def test_blocks_can_be_taken_in_any_order_and_again():
    packed = PackedRows(np.array([5, 6, 7]), np.array([0, 2, 3])).take(np.array([1, 0, 1]))
    assert (packed.rows.tolist(), packed.bounds.tolist()) == ([7, 5, 6, 7], [0, 1, 3, 4])


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(lambda ls: any(0 < n < 20 for n in ls)))
def test_every_short_row_is_written_once_and_blocks_are_those_of_the_scan(tmp_path_factory, lengths: list[int]):
    joined = joined_of(tmp_path_factory.mktemp("rows"), lengths)
    part = planned(joined, seq_length=30)
    blocks = rows_of(part, joined)
    short = [number for number, length in enumerate(lengths) if 0 < length < 20]
    assert sorted(row for rows in blocks for row in rows) == short
    assert part.lengths().tolist() == [30] * part.num_blocks
    assert all(padding > 10 for padding in part.padding)
    dropped = {entry.reason: (entry.documents, entry.tokens) for entry in part.dropped}
    long = [length for length in lengths if length >= 20]
    assert dropped == {"not drawn": (0, 0), "too long": (len(long), sum(long)), "not needed": (0, 0)}
    # as many blocks, filled alike, as the simulation makes of the rows in the pool's order
    pool = _pool_order(joined, lengths)
    scan = [[pool[item] for item in sample] for sample in published_scan([lengths[row] for row in pool], 30)]
    assert sorted(map(tuple, blocks)) == sorted(map(tuple, scan))


def _pool_order(joined: JoinedDatasets, lengths: list[int]) -> list[int]:
    return shuffled_pool(joined.documents(), np.ones(len(joined.documents()), np.int64), 1234).tolist()


def test_weights_copies_and_drops_add_up(tmp_path: Path):
    first = finished(tmp_path / "a", [[7] * (1 + n % 25) for n in range(200)])
    joined = JoinedDatasets([first, finished(tmp_path / "b", [[8] * 5] * 200)])
    part = planned(joined, seq_length=30, weights=(2.5, 0.3), seed=5)
    lengths = np.diff(joined.offsets)
    times = Counter(row for rows in rows_of(part, joined) for row in rows)
    for row, length in enumerate(lengths.tolist()):
        assert times[row] in ({0} if length >= 20 else {2, 3} if row < 200 else {0, 1})
    dropped = {entry.reason: entry for entry in part.dropped}
    assert dropped["too long"].documents == np.count_nonzero(lengths >= 20)
    assert dropped["not drawn"].documents == 200 - sum(row >= 200 for row in times)
    content = part.num_tokens - int(part.padding.sum())
    assert joined.num_tokens + part.repeated_tokens - sum(entry.tokens for entry in part.dropped) == content


def test_fewer_samples_than_one_epoch_leave_rows_over(tmp_path: Path):
    joined = joined_of(tmp_path, [15] * 6)
    part = planned(joined, seq_length=30, num_samples=4)
    assert part.num_blocks == 4
    assert {e.reason: e.documents for e in part.dropped} == {"not drawn": 0, "too long": 0, "not needed": 2}
    part = planned(joined, seq_length=30, num_samples=15)
    times = Counter(row for rows in rows_of(part, joined) for row in rows)
    assert sorted(times.values()) == [2, 2, 2, 3, 3, 3]
    assert part.repeated_tokens == (15 - 6) * 15


def test_the_order_is_a_permutation_that_depends_on_the_seed(tmp_path: Path):
    joined = joined_of(tmp_path, list(range(10, 19)) * 4)
    one, same, other = (rows_of(planned(joined, seq_length=30, seed=seed), joined) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert one != sorted(one, key=lambda rows: rows[0])


def test_rows_that_are_all_too_long_are_an_error_not_an_endless_loop(tmp_path: Path):
    joined = joined_of(tmp_path, [20, 25])
    with pytest.raises(DataError, match=r"every one of 2 rows is too long .*30.*fewer than 20 tokens.*shortest has 20"):
        planned(joined, seq_length=30, num_samples=5)


def test_weights_and_parts_that_leave_nothing_are_refused(tmp_path: Path):
    joined = joined_of(tmp_path, [5, 6])
    with pytest.raises(DataError, match="the weights leave no row"):
        planned(joined, seq_length=30, weights=(1e-9,))
    with pytest.raises(DataError, match="--pack-shards 3 is more than the 2 rows"):
        planned(joined, seq_length=30, pack_shards=3)
    with pytest.raises(DataError, match="--pad-id 60000"):
        planned(joined, seq_length=30, pad_id=60000)
    with pytest.raises(DataError, match="2 numbers for 1 inputs"):
        planned(joined, seq_length=30, weights=(1.0, 1.0))


def test_rows_that_are_dropped_for_their_length_are_listed(tmp_path: Path):
    joined = joined_of(tmp_path, [5, 20, 0, 19, 33])
    plan = plan_first_fit(joined, settings_for("first-fit", joined, seq_length=30, pad_id=PAD))
    assert (plan.listed.tolist(), plan.listed_reason) == ([1, 4], "too long")
