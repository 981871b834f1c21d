"""The manifest comes back as it was written, and a wrong one is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import DatasetManifest, manifest_path, read_manifest, verify_checksums
from megatron_ext.errors import DataError
from tests.unit.data.small import write_jsonl


@pytest.fixture
def made(tmp_path: Path) -> tuple[str, DatasetManifest]:
    path = write_jsonl(tmp_path / "in.jsonl", ["1 2 3", "", "4"])
    request = PreprocessRequest(
        (str(path),), str(tmp_path / "out"), "NullTokenizer", vocab_size=10, rows=RowSettings(append_eod=True)
    )
    return f"{tmp_path}/out_text_document", preprocess(request)[0]


def test_what_is_written_is_what_is_read(made: tuple[str, DatasetManifest]):
    prefix, manifest = made
    assert read_manifest(prefix) == manifest
    assert manifest.records.add_up
    assert (manifest.tokens, manifest.documents, manifest.largest_id) == (6, 2, 10)


def test_a_dataset_without_manifest_has_none(tmp_path: Path):
    assert read_manifest(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"format": "other"}', '{"format": "megatron_ext dataset manifest", "format_version": 99}', "\xff"],
)
def test_damaged_manifests_are_refused(tmp_path: Path, content: str):
    manifest_path(tmp_path / "data").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path / "data")


def test_a_missing_or_unknown_field_is_refused(made: tuple[str, DatasetManifest]):
    prefix, manifest = made
    content = json.loads(manifest.to_json())
    for changed in ({k: v for k, v in content.items() if k != "tokens"}, {**content, "extra": 1}):
        manifest_path(prefix).write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"manifest\.json"):
            read_manifest(prefix)


@pytest.mark.parametrize("field", ["tokens", "documents", "dtype"])
def test_a_manifest_of_another_dataset_is_refused_at_open(made: tuple[str, DatasetManifest], field: str):
    prefix, manifest = made
    value = "int32" if field == "dtype" else getattr(manifest, field) + 1
    manifest_path(prefix).write_text(dataclasses.replace(manifest, **{field: value}).to_json())
    with pytest.raises(DataError, match=field):
        IndexedDataset(prefix)


def test_verification_finds_a_single_changed_byte(made: tuple[str, DatasetManifest]):
    prefix, _ = made
    verify_checksums(prefix)
    path = Path(f"{prefix}.bin")
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"\.bin is damaged"):
        verify_checksums(prefix)


def test_verification_needs_a_manifest(tmp_path: Path):
    with pytest.raises(DataError, match="no manifest"):
        verify_checksums(tmp_path / "nothing")


def test_an_input_whose_name_is_not_utf8_is_told_all_the_same(tmp_path: Path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe4.jsonl")
    write_jsonl(Path(path), ["1 2"])
    manifest = preprocess(PreprocessRequest((path,), str(tmp_path / "out"), "NullTokenizer", vocab_size=10))[0]
    assert read_manifest(tmp_path / "out_text_document") == manifest
    assert manifest.inputs[0].path == path
