"""All outputs of a run appear together, the manifests last; nothing is replaced unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.encode import EncodedBlock, EncodeSettings, KeyDocuments
from megatron_ext.data.manifest import TokenizerFacts
from megatron_ext.data.outputs import DatasetOutputs
from megatron_ext.data.pending import PendingFile
from megatron_ext.data.records import BadRecord
from megatron_ext.errors import DataError

SETTINGS = EncodeSettings(("a", "b"), False, "uint16", "NullTokenizer", None, 9, "f")
FACTS = TokenizerFacts("NullTokenizer", None, "f", 10, 9)
DOCUMENTS = KeyDocuments(np.array([1, 2], np.uint16).tobytes(), np.array([2]), 2, 0)
EMPTY = KeyDocuments(b"", np.array([], np.int64), -1, 1)
NAMES = [f"out_{key}_document.{suffix}" for key in "ab" for suffix in ("bin", "idx", "manifest.json")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_everything_appears_at_publish_and_the_manifests_come_last(tmp_path: Path, monkeypatch):
    published = []
    original = PendingFile.publish
    monkeypatch.setattr(PendingFile, "publish", lambda file: (published.append(file.path.name), original(file)))
    outputs = DatasetOutputs(str(tmp_path / "out"), SETTINGS, False)
    outputs.add(EncodedBlock(2, [DOCUMENTS, EMPTY], [BadRecord(0, 2, "broken JSON", "", b"{")]), [Path("in.jsonl")])
    assert all(name.endswith(".partial") for name in names(tmp_path))
    first, second = outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == sorted([*NAMES, "out.quarantine.jsonl"])
    assert [name.endswith("manifest.json") for name in published] == [False] * 5 + [True] * 2
    assert (first.documents, first.records.empty, second.documents, second.records.empty) == (1, 0, 0, 1)
    assert first.quarantined_by_reason == {"broken JSON": 1}


def test_a_run_that_is_given_up_leaves_nothing(tmp_path: Path):
    outputs = DatasetOutputs(str(tmp_path / "out"), SETTINGS, False)
    outputs.add(EncodedBlock(1, [DOCUMENTS, DOCUMENTS], []), [])
    outputs.discard()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [*NAMES, "out.quarantine.jsonl"])
def test_an_existing_output_is_refused_without_overwrite(tmp_path: Path, name: str):
    (tmp_path / name).write_text("old")
    with pytest.raises(DataError, match="--overwrite"):
        DatasetOutputs(str(tmp_path / "out"), SETTINGS, False)
    assert names(tmp_path) == [name]


def test_overwriting_replaces_everything_and_removes_an_old_quarantine(tmp_path: Path):
    for name in [*NAMES, "out.quarantine.jsonl"]:
        (tmp_path / name).write_text("old")
    outputs = DatasetOutputs(str(tmp_path / "out"), SETTINGS, True)
    outputs.add(EncodedBlock(1, [DOCUMENTS, DOCUMENTS], []), [])
    outputs.publish([], FACTS)
    assert names(tmp_path) == sorted(NAMES)
    assert not any((tmp_path / name).read_bytes() == b"old" for name in NAMES)


def test_a_run_without_documents_is_refused_and_its_quarantine_kept(tmp_path: Path):
    outputs = DatasetOutputs(str(tmp_path / "out"), SETTINGS, False)
    outputs.add(EncodedBlock(2, [EMPTY, EMPTY], [BadRecord(0, 1, "broken JSON", "", b"{")]), [Path("in.jsonl")])
    with pytest.raises(DataError, match="no document"):
        outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == ["out.quarantine.jsonl"]


def test_records_that_do_not_add_up_are_never_published(tmp_path: Path):
    outputs = DatasetOutputs(str(tmp_path / "out"), SETTINGS, False)
    outputs.add(EncodedBlock(7, [DOCUMENTS, DOCUMENTS], []), [])
    with pytest.raises(AssertionError, match="add up"):
        outputs.publish([], FACTS)
    outputs.discard()
    assert names(tmp_path) == []
