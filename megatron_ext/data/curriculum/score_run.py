"""One pass over a dataset that writes score files, and how it goes on after everything was killed.

`PREFIX.scores.journal` says how far a pass is. What is noted there is on disk: the values in the partial files, and the
state from which the pass goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_ext import log
from megatron_ext.data.curriculum.score_file import ScoreFile, ScoreProgress, ScoreTarget, ScoreWriter
from megatron_ext.data.curriculum.score_progress import ScoreReporter
from megatron_ext.data.preprocessing.journal import Journal
from megatron_ext.data.preprocessing.pending import partial_path
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError


@dataclass(frozen=True)
class PassResult:
    """The scores of the next documents.

    Attributes:
        scores: `[metrics, n]`, a row per metric of the pass.
        state: plain JSON values from which the pass goes on behind these documents.
    """

    scores: NDArray[np.float64]
    state: dict[str, Any]


class ScorePass(Protocol):
    """Scores all documents of a dataset under one or more metrics."""

    @property
    def made_by(self) -> Mapping[str, dict[str, Any]]:
        """Name of each score file -> how its scores are made: everything that decides them."""

    def results(self, state: dict[str, Any] | None) -> Iterator[PassResult]:
        """The scores of all documents in order, or of those behind the documents that gave `state`."""


@dataclass(frozen=True)
class RunOptions:
    """How a run treats what is there already.

    Attributes:
        resume: go on with what a killed run left, leave finished scores as they are.
        overwrite: scores and unfinished work that exist may be lost.
        commit_seconds: how often the run makes sure of what it did.
    """

    resume: bool = False
    overwrite: bool = False
    commit_seconds: float = 30.0


def journal_path(prefix: str) -> Path:
    """The journal of a scoring run that is not finished."""
    return Path(f"{prefix}.scores.journal")


def run_pass(dataset: IndexedDataset, score_pass: ScorePass, options: RunOptions) -> list[Path]:
    """Write the score files of a pass and return them; a reader sees none of them before it is complete.

    The files are the same however often the run is killed and resumed.

    Raises:
        DataError: scores exist and nothing says what to do with them, the unfinished work is another run's, a score
            is not finite, or the disk fails.
    """
    targets = [ScoreTarget.of(dataset, name) for name in score_pass.made_by]
    path = journal_path(dataset.prefix)
    if options.resume and not path.exists() and _are_complete(dataset, score_pass.made_by):
        log.info(f"complete already: {', '.join(str(target.path) for target in targets)}")
        return [target.path for target in targets]
    if not options.overwrite and not (options.resume and path.exists()):
        _refuse_loss(targets, path, options.resume)
    journal, entry = _open_journal(path, dataset, score_pass.made_by, options.resume)
    with closing(journal):
        has_state = entry is not None
        writers: list[ScoreWriter] = []
        try:
            _open_writers(targets, score_pass, entry, writers)
            for state in _write(dataset, score_pass, writers, entry, options.commit_seconds):
                files = {target.name: asdict(writer.progress) for target, writer in zip(targets, writers, strict=True)}
                journal.append({"state": state, "files": files})
                has_state = True
            for writer in writers:
                writer.publish()
            has_state = False
        finally:
            for writer in writers:
                writer.keep() if has_state else writer.discard()
            if not has_state:
                journal.remove()
    return [target.path for target in targets]


def _write(
    dataset: IndexedDataset,
    score_pass: ScorePass,
    writers: Sequence[ScoreWriter],
    entry: dict[str, Any] | None,
    commit_seconds: float,
) -> Iterator[dict[str, Any]]:
    """Append all scores; yields the state whenever everything before it is on disk, the last time at the end."""
    results = score_pass.results(entry["state"] if entry else None)
    done = writers[0].documents
    offset = _offset(dataset, done)
    reporter = ScoreReporter(f"scoring {', '.join(score_pass.made_by)}", dataset.num_tokens, offset)
    committed_s = time.monotonic()
    state: dict[str, Any] | None = None
    try:
        for result in results:
            for writer, scores in zip(writers, result.scores, strict=True):
                writer.append(scores)
            state = result.state
            reporter.advance(_offset(dataset, writers[0].documents) - offset)
            offset = _offset(dataset, writers[0].documents)
            if time.monotonic() - committed_s >= commit_seconds:
                _sync(writers)
                yield state
                committed_s = time.monotonic()
        if state is not None and writers[0].documents == dataset.num_documents:
            _sync(writers)  # several files get their names one after the other: a death in between is mended too
            yield state
    finally:
        reporter.close()
        results.close()  # type: ignore[attr-defined]


def _sync(writers: Sequence[ScoreWriter]) -> None:
    for writer in writers:
        writer.sync()


def _offset(dataset: IndexedDataset, document: int) -> int:
    return int(dataset.document_offsets(document, document)[0])


def _open_writers(
    targets: Sequence[ScoreTarget], score_pass: ScorePass, entry: dict[str, Any] | None, writers: list[ScoreWriter]
) -> None:
    for target in targets:
        progress = None
        if entry is not None:
            progress = ScoreProgress(**entry["files"][target.name])
            if target.path.exists() and not partial_path(target.path).exists():
                target.path.replace(partial_path(target.path))  # a publication that was killed in the middle
        writers.append(ScoreWriter(target, score_pass.made_by[target.name], progress))


def _open_journal(
    path: Path, dataset: IndexedDataset, made_by: Mapping[str, dict[str, Any]], resume: bool
) -> tuple[Journal, dict[str, Any] | None]:
    facts = {"dataset": dataset.identity, "scores": dict(made_by)}
    if not (resume and path.exists()):
        return Journal.begin(path, facts), None
    journal, header, entry = Journal.reopen(path)
    for name, wanted in facts.items():
        if header.get(name) != wanted:
            journal.close()
            raise DataError(
                f"--resume finds the unfinished work of another run: {name} was {header.get(name)!r}",
                f"This run has {wanted!r}",
                f"Give the same flags, or begin anew with --overwrite (it removes {path})",
            )
    if entry is not None:
        done = max(file["documents"] for file in entry["files"].values())
        log.info(f"resuming after {done:,} documents")
    return journal, entry


def _are_complete(dataset: IndexedDataset, made_by: Mapping[str, dict[str, Any]]) -> bool:
    """Whether all files are there and made as this run would make them.

    Raises:
        DataError: one of them is damaged or of other data.
    """
    if not all(ScoreTarget.of(dataset, name).path.exists() for name in made_by):
        return False
    return all(ScoreFile(dataset.prefix, name, dataset).header["made_by"] == facts for name, facts in made_by.items())


def _refuse_loss(targets: Sequence[ScoreTarget], path: Path, resume: bool) -> None:
    for target in targets:
        if target.path.exists():
            told = "was made in another way, or others of this pass are missing" if resume else "exists already"
            raise DataError(f"the score file {target.path} {told}", fix="Give --overwrite to replace it")
    if path.exists():
        journal, _, entry = Journal.reopen(path)
        journal.close()
        if entry is not None:
            raise DataError(
                f"{path} holds the unfinished work of an earlier run",
                "Beginning anew would lose it",
                "Give --resume to go on from there, or --overwrite to begin anew",
            )
