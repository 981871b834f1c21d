"""Blocks are written with their padding and masks, in any number of batches the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.packing.block_writer import BlockWriter
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import PackedPart, PackPlan
from tests.unit.data.packing.finished import PAD, contents, finished

PART = PackedPart(
    suffix="",
    seq_length=6,
    starts=np.array([0, 4, 2]),
    ends=np.array([2, 7, 6]),
    bounds=np.array([0, 2, 3]),
    padding=np.array([1, 0]),
    unlearned=np.array([0, 3]),
)
MASKS = [[0, 1, 1], [2, 1, 0, 1]]


@pytest.fixture
def joined(tmp_path: Path) -> JoinedDatasets:
    documents = [[10, 11, 12], [13, 14, 15, 16]]
    return JoinedDatasets([finished(tmp_path / "in", documents, MASKS)])


def written(joined: JoinedDatasets, prefix: Path, with_loss_mask: bool, clock=lambda: 0.0) -> BlockWriter:
    writer = BlockWriter(str(prefix), joined, PackPlan([PART], with_loss_mask, {}, pad_id=PAD))
    writer.write(PART, clock)
    writer.writer.finish()
    writer.writer.publish()
    writer.writer.discard()
    return writer


@pytest.mark.parametrize("batch", [1, 6, 1000])
def test_blocks_by_hand(joined: JoinedDatasets, tmp_path: Path, monkeypatch, batch: int):
    monkeypatch.setattr("megatron_ext.data.packing.block_writer._TOKENS_AT_A_TIME", batch)
    writer = written(joined, tmp_path / "out", with_loss_mask=True)
    rows, masks = contents(tmp_path / "out")
    assert rows == [[PAD, 10, 11, 14, 15, 16], [12, 13, 14, 15]]
    # the pad is not learned; of the second block the first three tokens are repeated, the code 2 stays code 2 elsewhere
    assert masks == [[0, 0, 1, 1, 0, 1], [0, 0, 0, 0]]
    assert (writer.largest_id, writer.learned, writer.blocks_without_labels) == (16, 3, 1)


def test_without_a_mask_all_but_the_first_token_of_a_block_is_learned(tmp_path: Path):
    joined = JoinedDatasets([finished(tmp_path / "in", [[10, 11, 12], [13, 14, 15, 16]])])
    part = PackedPart("", 4, np.array([0, 4]), np.array([4, 7]), np.arange(3), *np.zeros((2, 2), np.int64))
    writer = BlockWriter(str(tmp_path / "out"), joined, PackPlan([part], False, {}))
    writer.write(part)
    assert writer.learned == 7 - 2
    writer.writer.discard()
    assert not list(tmp_path.glob("out*"))


def test_long_runs_tell_how_far_they_are(joined: JoinedDatasets, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("megatron_ext.data.packing.block_writer._TOKENS_AT_A_TIME", 1)
    times = iter([0.0, 12.0, 13.0])
    written(joined, tmp_path / "out", True, lambda: next(times))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Packed 1 of 2 blocks of {tmp_path / 'out'} (0 tokens/s), 12 s left."]
