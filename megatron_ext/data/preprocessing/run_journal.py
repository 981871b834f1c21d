"""How far a run is, on disk: what lets `--resume` go on after everything was killed."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_ext import log
from megatron_ext.data.preprocessing.journal import Journal
from megatron_ext.data.preprocessing.outputs import OutputLayout, OutputTotals
from megatron_ext.data.preprocessing.pending import partial_path
from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.store.manifest import DatasetManifest, manifest_path, read_manifest
from megatron_ext.errors import DataError


@dataclass(frozen=True)
class RunState:
    """A moment between two blocks at which everything before it is on disk.

    Attributes:
        position: where reading goes on.
        records: records read of each input file.
        totals: what was written.
    """

    position: Position
    records: list[int]
    totals: OutputTotals

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return {"position": asdict(self.position), "records": self.records, "totals": self.totals.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RunState:
        """The state that `to_json` gave."""
        totals = OutputTotals.from_json(content["totals"])
        return cls(Position(**content["position"]), content["records"], totals)


class RunJournal:
    """The journal of one run, locked while the run lasts.

    Attributes:
        state: where to go on; None to begin anew.
    """

    def __init__(self, journal: Journal, state: RunState | None) -> None:
        self.state = state
        self.has_state = state is not None
        self._journal = journal
        self._committed_s = time.monotonic()

    @classmethod
    def open(cls, layout: OutputLayout, facts: dict[str, Any], resume: bool, overwrite: bool) -> RunJournal:
        """Begin the run, or find out where to go on.

        Args:
            layout: the outputs.
            facts: what must be equal in a run and the one it resumes: name -> plain value.
            resume: go on with an unfinished run, if there is one.
            overwrite: outputs and unfinished work that exist may be lost.

        Raises:
            DataError: outputs or unfinished work exist and nothing says what to do with them, or the unfinished run
                is another one.
        """
        path = layout.journal_path
        if resume and path.exists():
            journal, header, last = Journal.reopen(path)
            try:
                _refuse_other_run(header, facts, path)
            except DataError:
                journal.close()
                raise
            state = RunState.from_json(last) if last else None
            if state:
                log.info(f"resuming after {state.totals.num_read} records")
            return cls(journal, state)
        if not overwrite:
            refuse_loss(layout)
        return cls(Journal.begin(path, facts), None)

    def is_due(self, seconds: float) -> bool:
        """Whether the last commit is so long ago."""
        return time.monotonic() - self._committed_s >= seconds

    def commit(self, state: RunState) -> None:
        """Note a state; everything before it must be on disk already."""
        self._journal.append(state.to_json())
        self._committed_s = time.monotonic()
        self.has_state = True

    def close(self) -> None:
        """Close the journal; it stays on disk when the run can be resumed from it."""
        if self.has_state:
            self._journal.close()
        else:
            self._journal.remove()

    def remove(self) -> None:
        """The run is finished: nothing is left to resume."""
        self.has_state = False


def finished_manifests(layout: OutputLayout) -> list[DatasetManifest] | None:
    """The manifests of a run that is complete, None when one is missing or work is unfinished.

    Raises:
        DataError: a manifest is damaged.
    """
    if layout.journal_path.exists() or not all(manifest_path(prefix).exists() for prefix in layout.prefixes):
        return None
    found = [read_manifest(prefix) for prefix in layout.prefixes]
    return [manifest for manifest in found if manifest is not None]


def refuse_unusable_names(layout: OutputLayout) -> None:
    """Find out before the work, not after it, that an output cannot have its name.

    Raises:
        DataError: something that is no file has the name of an output, or the name is too long.
    """
    for path in (layout.journal_path, *layout.result_paths):
        for name in (path, partial_path(path)):
            try:
                is_file = stat.S_ISREG(os.stat(name).st_mode)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DataError(
                    f"the output {name} cannot be written ({error.strerror})", fix="Choose another --output-prefix"
                ) from None
            if not is_file:
                raise DataError(
                    f"the output {path} cannot be written: {name} is no file",
                    fix="Move it away, or choose another --output-prefix",
                )


def _refuse_other_run(header: dict[str, Any], facts: dict[str, Any], path: Path) -> None:
    for name in sorted(facts.keys() | header.keys()):
        if header.get(name) != facts.get(name):
            raise DataError(
                f"--resume finds the unfinished work of another run: {name} was {header.get(name)!r}",
                f"This run has {facts.get(name)!r}",
                f"Give the same flags and inputs, or begin anew with --overwrite (it removes {path})",
            )


def refuse_loss(layout: OutputLayout) -> None:
    """Refuse to begin anew where outputs or the work of an unfinished run would be lost.

    Raises:
        DataError: there are some.
    """
    path = layout.journal_path
    existing = [path for path in layout.result_paths if path.exists()]
    if existing:
        raise DataError(
            f"the output {existing[0]} exists already",
            fix="Give --overwrite to replace it, or choose another --output-prefix",
        )
    if path.exists() and _holds_work(path):
        raise DataError(
            f"{path} holds the unfinished work of an earlier run",
            "Beginning anew would lose it",
            "Give --resume to go on from there, or --overwrite to begin anew",
        )


def _holds_work(path: Path) -> bool:
    try:
        journal, _, last = Journal.reopen(path)
    except DataError as error:
        raise DataError(error.what, error.rule, "Give --overwrite to begin anew") from None
    journal.close()
    return last is not None
