"""The stream loses no token, and cuts nothing but blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.stream import plan_stream
from megatron_ext.errors import DataError
from tests.unit.data.packing.finished import blocks_of, finished, settings_for


@settings(max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=8).filter(any),
    st.integers(2, 9),
    st.sampled_from([None, True]),
)
def test_the_blocks_end_to_end_are_the_documents_end_to_end(tmp_path_factory, documents, seq_length, drop_last):
    joined = JoinedDatasets([finished(tmp_path_factory.mktemp("s") / "a", documents)])
    flat = [token for document in documents for token in document]
    wanted = settings_for("stream", joined, seq_length=seq_length, drop_last=drop_last)
    if drop_last and len(flat) < seq_length:
        with pytest.raises(DataError, match="--drop-last"):
            plan_stream(joined, wanted)
        return
    (part,) = plan_stream(joined, wanted).parts
    blocks = [joined.tokens(*spans[0]).tolist() for spans in blocks_of(part)]
    written = [token for block in blocks for token in block]
    assert all(len(block) == seq_length for block in blocks[:-1])
    assert 0 < len(blocks[-1]) <= seq_length
    assert written == flat[: len(flat) // seq_length * seq_length if drop_last else len(flat)]
    assert len(written) + part.dropped[0].tokens == len(flat)


def test_the_dropped_tail_is_counted_in_documents_too(tmp_path: Path):
    joined = JoinedDatasets([finished(tmp_path / "a", [[1, 2, 3], [4, 5], [], [6], [7]])])
    (part,) = plan_stream(joined, settings_for("stream", joined, seq_length=4, drop_last=True)).parts
    (tail,) = part.dropped
    assert (tail.documents, tail.tokens) == (2, 3)  # 5, 6 and 7; of [4, 5] the 4 is written
    joined = JoinedDatasets([finished(tmp_path / "b", [[1, 2, 3, 4], [5]])])
    (part,) = plan_stream(joined, settings_for("stream", joined, seq_length=4, drop_last=True)).parts
    assert (part.dropped[0].documents, part.dropped[0].tokens) == (1, 1)


def test_documents_that_nothing_separates_are_warned_of(tmp_path: Path, capsys):
    ended = finished(tmp_path / "a", [[5, 2]], append_eod=True)
    joined = JoinedDatasets([ended])
    plan_stream(joined, settings_for("stream", joined, seq_length=4))
    assert "nothing separates them" not in capsys.readouterr().err
    joined = JoinedDatasets([ended, finished(tmp_path / "b", [[5]])])
    plan_stream(joined, settings_for("stream", joined, seq_length=4))
    assert "nothing separates them" in capsys.readouterr().err
