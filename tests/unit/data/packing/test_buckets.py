"""Length buckets: each document whole in the smallest size that holds it, or in the room beside a longer one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.packing.buckets import plan_buckets, waste
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import PackPlan
from megatron_ext.errors import DataError
from tests.unit.data.packing.finished import blocks_of, finished, settings_for


def planned(folder: Path, lengths: list[int], **values: Any) -> tuple[PackPlan, JoinedDatasets]:
    joined = JoinedDatasets([finished(folder / "rows", [[7] * length for length in lengths])])
    return plan_buckets(joined, settings_for("buckets", joined, **{"bucket_sizes": (4, 8), **values})), joined


def test_buckets_by_hand(tmp_path: Path):
    # offsets:            0  3  8  9 13 19 21 24
    plan, _ = planned(tmp_path, [3, 5, 1, 4, 6, 2, 3])
    small, large = plan.parts
    assert (small.suffix, large.suffix) == ("_4", "_8")
    # 5 and 6 need blocks of 8; the first 3 fills the one, 1 goes to the other, and the rest are too long for them
    assert blocks_of(large) == [[(3, 8), (0, 3)], [(13, 19), (8, 9)]]
    # of 4, 2 and 3 no two fit into 4
    assert blocks_of(small) == [[(9, 13)], [(19, 21)], [(21, 24)]]
    assert small.facts == {"waste": waste(9, 12), "waste_of_plain_padding": waste(9, 24)}
    assert [(e.reason, e.documents, e.tokens) for e in small.dropped if e.tokens] == [("in another bucket", 4, 15)]
    assert plan.whole_documents


@settings(max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=20).filter(any))
def test_cut_documents_are_complete_and_in_their_buckets(tmp_path_factory, lengths: list[int]):
    plan, joined = planned(tmp_path_factory.mktemp("b"), lengths, long_documents="cut")
    spans = [span for part in plan.parts for block in blocks_of(part) for span in block]
    assert sorted(token for start, end in spans for token in range(start, end)) == list(range(joined.num_tokens))
    assert plan.whole_documents == (max(lengths) <= 8)
    for part, smaller in zip(plan.parts, (0, 4), strict=True):
        assert all(length <= part.seq_length for length in part.lengths())
        assert all(any(end - start > smaller for start, end in block) for block in blocks_of(part))
        elsewhere = next(entry for entry in part.dropped if entry.reason == "in another bucket")
        assert part.num_tokens + elsewhere.tokens == joined.num_tokens
        here = {start for block in blocks_of(part) for start, _ in block}
        written = [n for n in joined.documents() if here & set(range(joined.offsets[n], joined.offsets[n + 1]))]
        assert len(written) + elsewhere.documents == len(joined.documents())
        assert part.facts["waste"] <= part.facts["waste_of_plain_padding"]


def test_long_documents_are_refused_unless_told_otherwise(tmp_path: Path):
    with pytest.raises(DataError, match=r"2 of 3 documents .*longest has 12 tokens, the bucket 8"):
        planned(tmp_path, [9, 3, 12])
    plan, _ = planned(tmp_path, [9, 3, 12, 2], long_documents="drop")
    assert (plan.listed.tolist(), plan.listed_reason) == ([0, 2], "longer than every bucket")
    small, large = plan.parts
    assert (small.num_blocks, large.num_blocks) == (2, 0)
    for part, elsewhere in ((small, 0), (large, 2)):
        assert {e.reason: e.documents for e in part.dropped} == {
            "in another bucket": elsewhere,
            "longer than every bucket": 2,
        }
    with pytest.raises(DataError, match="every document is longer than the largest bucket"):
        planned(tmp_path, [9], long_documents="drop")


def test_waste_is_the_share_of_padding():
    assert (waste(3, 12), waste(12, 12), waste(0, 0)) == (0.75, 0.0, 0.0)
