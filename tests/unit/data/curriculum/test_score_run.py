"""Runs that are killed anywhere and resumed leave the same bytes; nothing is lost without --overwrite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum import score_passes, score_run
from megatron_ext.data.curriculum.document_blocks import document_ranges
from megatron_ext.data.curriculum.score_file import ScoreFile, score_path
from megatron_ext.data.curriculum.score_passes import DocumentPass
from megatron_ext.data.curriculum.score_run import PassResult, RunOptions, journal_path, run_pass
from megatron_ext.data.preprocessing.journal import Journal
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError
from tests.unit.data.curriculum.scored import dies_by_sigkill, kill_after
from tests.unit.data.small import make_dataset

NAMES = ["length", "rarity", "bigram"]
OFTEN = RunOptions(resume=True, commit_seconds=0)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch) -> IndexedDataset:
    monkeypatch.setattr(score_passes, "document_ranges", lambda data, first=0: document_ranges(data, first, 300, 50))
    return IndexedDataset(make_dataset(tmp_path))


def files_of(dataset: IndexedDataset) -> dict[str, bytes]:
    folder = Path(dataset.prefix).parent
    return {path.name: path.read_bytes() for path in folder.iterdir() if ".scores" in path.name}


def finished(dataset: IndexedDataset, **options: bool) -> dict[str, bytes]:
    run_pass(dataset, DocumentPass(dataset, NAMES), RunOptions(**options))
    return files_of(dataset)


def test_a_run_leaves_its_score_files_and_nothing_else(dataset: IndexedDataset):
    assert finished(dataset).keys() == {f"data.{name}.scores" for name in NAMES}
    lengths = ScoreFile(dataset.prefix, "length").values
    assert lengths.tolist() == np.diff(dataset.document_offsets(0, 200)).tolist()


@pytest.mark.parametrize("commits", [1, 2, 5])
def test_a_killed_run_is_resumed_to_the_same_bytes(commits: int, dataset: IndexedDataset, monkeypatch):
    expected = finished(dataset)
    for name in NAMES:
        score_path(dataset.prefix, name).unlink()
    with monkeypatch.context() as context:
        kill_after(context, commits)
        assert dies_by_sigkill(lambda: run_pass(dataset, DocumentPass(dataset, NAMES), OFTEN))
    assert files_of(dataset).keys() == {*(f"{name}.partial" for name in expected), "data.scores.journal"}
    started: list[dict | None] = []

    class Watched(DocumentPass):
        def results(self, state):
            started.append(state)
            return super().results(state)

    with pytest.raises(DataError, match="unfinished work"):
        finished(dataset)
    run_pass(dataset, Watched(dataset, NAMES[::-1]), OFTEN)  # the order of the names does not matter
    assert started[0] is not None and started[0]["documents"] > 0
    assert files_of(dataset) == expected


def test_a_death_between_two_publications_is_mended(dataset: IndexedDataset, monkeypatch):
    expected = finished(dataset)
    for name in NAMES:
        score_path(dataset.prefix, name).unlink()
    publish, calls = score_run.ScoreWriter.publish, []

    def dying(writer) -> None:
        calls.append(writer)
        if len(calls) == 3:
            raise KeyboardInterrupt
        publish(writer)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(score_run.ScoreWriter, "publish", dying)
        run_pass(dataset, DocumentPass(dataset, NAMES), RunOptions())
    assert "data.length.scores" in files_of(dataset) and "data.bigram.scores" not in files_of(dataset)
    assert finished(dataset, resume=True) == expected


def test_finished_scores_are_left_alone_or_refused(dataset: IndexedDataset):
    expected = finished(dataset)
    before = score_path(dataset.prefix, "length").stat().st_mtime_ns
    assert finished(dataset, resume=True) == expected
    assert score_path(dataset.prefix, "length").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="exists already"):
        finished(dataset)
    assert finished(dataset, overwrite=True) == expected
    score_path(dataset.prefix, "rarity").write_bytes(b"")
    with pytest.raises(DataError, match="not a score file"):
        finished(dataset, resume=True)


def test_the_work_of_another_run_is_not_continued(dataset: IndexedDataset):
    interrupted(dataset, DocumentPass(dataset, ["length"]))
    with pytest.raises(DataError, match="unfinished work of another run: scores was"):
        finished(dataset, resume=True)
    assert finished(dataset, overwrite=True).keys() == {f"data.{name}.scores" for name in NAMES}


def interrupted(dataset: IndexedDataset, score_pass: DocumentPass) -> None:
    class Stopping:
        made_by = score_pass.made_by

        def results(self, state):
            yield next(iter(score_pass.results(state)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pass(dataset, Stopping(), RunOptions(commit_seconds=0))
    journal, _, entry = Journal.reopen(journal_path(dataset.prefix))
    journal.close()
    assert entry is not None


@pytest.mark.parametrize(
    ("scores", "message"),
    [([[np.nan] * 200], "score of document 0"), ([[1.0] * 201], "more than 200"), ([[1.0] * 3], "would miss")],
)
def test_bad_scores_leave_nothing(scores: list, message: str, dataset: IndexedDataset):
    class Bad:
        made_by = {"bad": {}}

        def results(self, state):
            yield PassResult(np.array(scores), {"documents": len(scores[0])})

    with pytest.raises(DataError, match=message):
        run_pass(dataset, Bad(), RunOptions())
    assert files_of(dataset) == {}
