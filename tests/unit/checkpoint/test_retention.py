"""Which checkpoints are deleted, and that the newest never is."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.checkpoint.names import checkpoint_folder, saved_iterations
from megatron_ext.checkpoint.retention import delete_superseded, superseded

ITERATIONS = st.lists(st.integers(0, 500), min_size=1, max_size=30, unique=True)
KEEP = st.none() | st.integers(1, 8)
INTERVAL = st.none() | st.integers(1, 60)


@settings(deadline=None)
@given(ITERATIONS, KEEP, INTERVAL, st.data())
def test_laws(iterations: list[int], keep_last: int | None, interval: int | None, data: st.DataObject):
    newest = data.draw(st.sampled_from(iterations))
    gone = superseded(iterations, newest, keep_last, interval)
    kept = [i for i in iterations if i not in gone]
    assert gone == sorted(set(gone))
    assert set(gone) < set(iterations)
    # the newest stays, and so does what an abandoned run had beyond it
    assert all(i < newest for i in gone)
    if keep_last is None and interval is None:
        assert not gone
    # as many as were asked for, if there are as many
    up_to_newest = sorted(i for i in iterations if i <= newest)
    assert set(up_to_newest[-(keep_last or 1) :]) <= set(kept)
    if interval is not None:
        assert all(i % interval for i in gone)
    if interval is None and keep_last is not None:
        assert len([i for i in kept if i <= newest]) == min(keep_last, len(up_to_newest))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 10), st.integers(1, 40))
def test_saving_again_and_again_deletes_the_same_as_saving_once(keep_last: int, step: int, saves: int):
    saved: list[int] = []
    for number in range(1, saves + 1):
        saved = [*saved, number * step]
        saved = [i for i in saved if i not in superseded(saved, number * step, keep_last, 3 * step)]
    every = [number * step for number in range(1, saves + 1)]
    assert saved == [i for i in every if i not in superseded(every, every[-1], keep_last, 3 * step)]


def test_examples():
    saved = [10, 20, 30, 40, 50]
    assert superseded(saved, 50, 2, None) == [10, 20, 30]
    assert superseded(saved, 50, 2, 20) == [10, 30]
    assert superseded(saved, 50, None, 20) == [10, 30]
    assert superseded(saved, 50, 9, None) == []
    # a start from 10 has just saved 20 again: 30 to 50 are another run's
    assert superseded(saved, 20, 1, None) == [10]


def test_deleting_leaves_the_others_whole(tmp_path: Path):
    for iteration in (1, 2, 3):
        checkpoint_folder(tmp_path, iteration).mkdir()
        (checkpoint_folder(tmp_path, iteration) / "file").write_text("x")
    delete_superseded(tmp_path, 3, 2, None)
    assert saved_iterations(tmp_path) == [2, 3]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "iter_0000002", "iter_0000003"]
