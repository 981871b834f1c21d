"""All outputs of a run appear together, the manifests last; nothing is replaced or lost unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.preprocessing.outputs import DatasetOutputs, OutputLayout, OutputTotals
from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.records import BadRecord
from megatron_ext.data.rows.encoder import EncodedBlock, KeyDocuments
from megatron_ext.data.store.manifest import TokenizerFacts
from megatron_ext.errors import DataError

FACTS = TokenizerFacts("NullTokenizer", None, "f", 10, 9)
DOCUMENTS = KeyDocuments(np.array([1, 2], np.uint16).tobytes(), np.array([2]), 2, 0)
MASKED = KeyDocuments(np.array([1, 2], np.uint16).tobytes(), np.array([2]), 2, 0, b"\x00\x01")
EMPTY = KeyDocuments(b"", np.array([], np.int64), -1, 1)
BAD = BadRecord(0, 2, "broken JSON", "", b"{")
NAMES = [f"out_{key}_document.{suffix}" for key in "ab" for suffix in ("bin", "idx", "manifest.json")]


def layout(folder: Path, **values: object) -> OutputLayout:
    return OutputLayout(str(folder / "out"), ("a", "b"), "uint16", **values)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_appears_at_publish_and_the_manifests_come_last(tmp_path: Path, monkeypatch):
    published = []
    original = PendingFile.publish
    monkeypatch.setattr(PendingFile, "publish", lambda file: (published.append(file.path.name), original(file)))
    outputs = DatasetOutputs(layout(tmp_path))
    outputs.add(EncodedBlock(2, [DOCUMENTS, EMPTY], [BAD]), ["in.jsonl"])
    assert all(name.endswith(".partial") for name in names(tmp_path))
    first, second = outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == sorted([*NAMES, "out.quarantine.jsonl"])
    assert [name.endswith("manifest.json") for name in published] == [False] * 5 + [True] * 2
    assert (first.documents, first.records.empty, second.documents, second.records.empty) == (1, 0, 0, 1)
    assert first.quarantined_by_reason == {"broken JSON": 1}


def test_a_run_that_is_given_up_leaves_nothing(tmp_path: Path):
    outputs = DatasetOutputs(layout(tmp_path))
    outputs.add(EncodedBlock(1, [DOCUMENTS, DOCUMENTS], []), [])
    outputs.discard()
    assert names(tmp_path) == []


def test_an_old_quarantine_is_removed_by_a_run_without_bad_records(tmp_path: Path):
    for name in [*NAMES, "out.quarantine.jsonl"]:
        (tmp_path / name).write_text("old")
    outputs = DatasetOutputs(layout(tmp_path))
    outputs.add(EncodedBlock(1, [DOCUMENTS, DOCUMENTS], []), [])
    outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == sorted(NAMES)
    assert not any((tmp_path / name).read_bytes() == b"old" for name in NAMES)


def test_a_run_without_documents_is_refused_and_its_quarantine_kept(tmp_path: Path):
    outputs = DatasetOutputs(layout(tmp_path))
    outputs.add(EncodedBlock(2, [EMPTY, EMPTY], [BAD]), ["in.jsonl"])
    with pytest.raises(DataError, match="no document"):
        outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == ["out.quarantine.jsonl"]


def test_a_shard_without_documents_is_a_dataset_all_the_same(tmp_path: Path):
    outputs = DatasetOutputs(layout(tmp_path, shard=(1, 2)))
    first, _ = outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == sorted(NAMES)
    assert (first.documents, first.shard) == (0, [1, 2])


def test_records_that_do_not_add_up_are_never_published(tmp_path: Path):
    outputs = DatasetOutputs(layout(tmp_path))
    outputs.add(EncodedBlock(7, [DOCUMENTS, DOCUMENTS], []), [])
    with pytest.raises(AssertionError, match="add up"):
        outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == []


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def add_blocks(outputs: DatasetOutputs, count: int) -> None:
    for _ in range(count):
        outputs.add(EncodedBlock(2, [MASKED, MASKED], [BAD]), ["in.jsonl"])


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "whole"
    folder.mkdir()
    outputs = DatasetOutputs(layout(folder, with_loss_mask=True))
    add_blocks(outputs, 5)
    outputs.publish([], FACTS)
    outputs.discard()
    return content(folder)


def test_what_was_added_after_the_last_commit_is_done_again(tmp_path: Path, whole: dict[str, bytes]):
    outputs = DatasetOutputs(layout(tmp_path, with_loss_mask=True))
    add_blocks(outputs, 3)
    outputs.sync()
    state = outputs.totals.to_json()
    add_blocks(outputs, 1)  # on disk perhaps, but the journal does not know it
    outputs.keep()
    again = DatasetOutputs(layout(tmp_path, with_loss_mask=True), OutputTotals.from_json(state))
    add_blocks(again, 2)
    again.publish([], FACTS)
    again.discard()
    assert content(tmp_path) == whole


@pytest.mark.parametrize("renames", range(9))
def test_a_publication_killed_at_any_rename_is_taken_up_again(tmp_path, whole, renames: int, monkeypatch):
    outputs = DatasetOutputs(layout(tmp_path, with_loss_mask=True))
    add_blocks(outputs, 5)
    outputs.sync()
    state, original, left = outputs.totals.to_json(), PendingFile.publish, [renames]

    def publish(file: PendingFile) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        original(file)

    with monkeypatch.context() as patched:
        patched.setattr(PendingFile, "publish", publish)
        with pytest.raises(KeyboardInterrupt):
            outputs.publish([], FACTS)
    outputs.keep()
    again = DatasetOutputs(layout(tmp_path, with_loss_mask=True), OutputTotals.from_json(state))
    assert not list(tmp_path.glob("*.idx")), "a reader could open half a dataset"
    again.publish([], FACTS)
    again.discard()
    assert content(tmp_path) == whole
