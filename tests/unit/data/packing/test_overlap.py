"""Yuren's overlap against a plain simulation of its rule on lists, and cases worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.overlap import overlap_windows, plan_overlap
from megatron_ext.errors import DataError
from tests.unit.data.packing.finished import BOS, blocks_of, finished, settings_for
from tests.unit.data.packing.published_rules import UNLEARNED, published_loop

# a document: the BOS, then other tokens; sometimes a BOS among them
DOCUMENT = st.lists(st.integers(BOS, 5), max_size=25).map(lambda rest: [BOS, *rest])


def windows_as_blocks(documents: list[list[int]], seq_length: int, look_back: int) -> list[tuple[list, list]]:
    stream = [token for document in documents for token in document]

    def repeated_before(end: int) -> int:
        tail = stream[end - look_back : end]
        return next((back + 1 for back in range(look_back) if tail[-1 - back] == BOS), look_back)

    ends = np.cumsum([len(document) for document in documents])
    return [
        (stream[s : s + seq_length], [UNLEARNED] * n + stream[s + n : s + seq_length])
        for s, n in overlap_windows(ends, 0, seq_length, repeated_before)
    ]


@given(st.lists(DOCUMENT, min_size=1, max_size=12), st.integers(4, 12), st.integers(1, 3))
def test_windows_are_the_blocks_of_the_published_loop(documents: list, seq_length: int, look_back: int):
    assert windows_as_blocks(documents, seq_length, look_back) == published_loop(documents, seq_length, look_back)


@pytest.mark.parametrize(
    ("lengths", "blocks"),
    [
        # 8 tokens fill a block of 8 exactly: nothing is repeated, and the next document begins the next block
        ([8, 8], [([1, 2, 3, 4, 5, 6, 7, 8], 0), ([1, 2, 3, 4, 5, 6, 7, 8], 0)]),
        # no BOS among the last 2 tokens: both stay, but with the 2 tokens left over they fill no block
        ([10], [([1, 2, 3, 4, 5, 6, 7, 8], 0)]),
        # the second document's BOS is the last token of the block: it alone is repeated
        ([7, 8], [([1, 2, 3, 4, 5, 6, 7, 1], 0), ([1, 2, 3, 4, 5, 6, 7, 8], 1)]),
        # of two BOS in the look-back the last one counts
        ([6, 1, 8], [([1, 2, 3, 4, 5, 6, 1, 1], 0), ([1, 2, 3, 4, 5, 6, 7, 8], 1)]),
        # one long document: one block when it is appended, the others in the final drain, 2 tokens repeated each time
        (
            [20],
            [([1, 2, 3, 4, 5, 6, 7, 8], 0), ([7, 8, 9, 10, 11, 12, 13, 14], 2), ([13, 14, 15, 16, 17, 18, 19, 20], 2)],
        ),
        # at most one block per document: after the first block 7 to 14 wait, a full buffer; the next document is
        # appended before it is emptied, so the second block does not count as exactly full
        ([14, 2], [([1, 2, 3, 4, 5, 6, 7, 8], 0), ([7, 8, 9, 10, 11, 12, 13, 14], 2)]),
    ],
)
def test_cases_by_hand_with_blocks_of_8_and_a_look_back_of_2(lengths: list[int], blocks: list):
    documents = [list(range(1, length + 1)) for length in lengths]
    found = windows_as_blocks(documents, 8, 2)
    assert [(ids, sum(label == UNLEARNED for label in labels)) for ids, labels in found] == blocks
    assert found == published_loop(documents, 8, 2)


def test_a_block_that_a_later_document_fills_exactly_repeats_nothing():
    documents = [[1, 2, 3], [1, 2, 3, 4, 5], [1] * 8]
    assert [n for _, n in overlap_windows(np.cumsum([len(d) for d in documents]), 0, 8, lambda end: 2)] == [0, 0]


def long_documents(count: int) -> list[list[int]]:
    return [[BOS, *range(10, 10 + 20 + 7 * number)] for number in range(count)]


def test_the_look_back_is_a_32nd_of_the_block_and_counts_add_up(tmp_path: Path):
    documents = long_documents(12)
    first, second = finished(tmp_path / "a", [*documents[:5], []]), finished(tmp_path / "b", documents[5:])
    joined = JoinedDatasets([first, second])
    plan = plan_overlap(joined, settings_for("overlap", joined, seq_length=64, bos_id=BOS))
    (part,) = plan.parts
    expected = published_loop(documents, 64, 2)
    assert [joined.tokens(*spans[0]).tolist() for spans in blocks_of(part)] == [ids for ids, _ in expected]
    assert part.unlearned.tolist() == [sum(label == UNLEARNED for label in labels) for _, labels in expected]
    learned = sum(label != UNLEARNED for _, labels in expected for label in labels)
    (tail,) = part.dropped
    assert joined.num_tokens == learned + tail.tokens
    assert part.num_tokens == learned + part.repeated_tokens
    assert plan.with_loss_mask


def test_of_several_bos_in_the_look_back_the_last_one_is_kept(tmp_path: Path):
    joined = JoinedDatasets([finished(tmp_path / "a", [[BOS] * 62, [BOS], [BOS, *range(10, 80)]])])
    (part,) = plan_overlap(joined, settings_for("overlap", joined, seq_length=64, bos_id=BOS)).parts
    assert (part.starts.tolist(), part.unlearned.tolist()) == ([0, 63], [0, 1])


def test_a_reset_begins_anew_as_the_published_program_does(tmp_path: Path):
    documents = long_documents(10)
    joined = JoinedDatasets([finished(tmp_path / "a", documents)])
    plan = plan_overlap(joined, settings_for("overlap", joined, seq_length=64, bos_id=BOS, reset_every=4))
    (part,) = plan.parts
    expected = [block for first in (0, 4, 8) for block in published_loop(documents[first : first + 4], 64, 2)]
    assert [joined.tokens(*spans[0]).tolist() for spans in blocks_of(part)] == [ids for ids, _ in expected]
    learned = sum(label != UNLEARNED for _, labels in expected for label in labels)
    assert joined.num_tokens == learned + part.dropped[0].tokens


def test_documents_of_which_nothing_is_written_are_counted(tmp_path: Path):
    documents = [[BOS] * 60, [BOS] * 6, [BOS] * 10, [BOS] * 3]
    joined = JoinedDatasets([finished(tmp_path / "a", documents)])
    (part,) = plan_overlap(joined, settings_for("overlap", joined, seq_length=64, bos_id=BOS)).parts
    (tail,) = part.dropped
    assert (tail.documents, tail.tokens) == (2, 79 - 64)


def test_documents_without_bos_are_counted_and_refused(tmp_path: Path):
    joined = JoinedDatasets([finished(tmp_path / "a", [[BOS, 5], [5], [], [6, BOS]])])
    with pytest.raises(DataError, match="2 of 3 documents do not begin with the BOS 1"):
        plan_overlap(joined, settings_for("overlap", joined, seq_length=32, bos_id=BOS))
    with pytest.raises(DataError, match="--bos-id 60000 is not an id"):
        plan_overlap(joined, settings_for("overlap", joined, seq_length=32, bos_id=60000))


def test_too_few_tokens_for_one_block_are_refused(tmp_path: Path):
    joined = JoinedDatasets([finished(tmp_path / "a", [[BOS] * 20, [BOS] * 20])])
    with pytest.raises(DataError, match=r"no block of --seq-length 64 is full.*40 tokens"):
        plan_overlap(joined, settings_for("overlap", joined, seq_length=64, bos_id=BOS))
    with pytest.raises(DataError, match="every 1 of them begin anew"):
        plan_overlap(joined, settings_for("overlap", joined, seq_length=32, bos_id=BOS, reset_every=1))
