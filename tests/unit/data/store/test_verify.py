"""Each check finds its own damage, all others go on, and a sound dataset passes every one."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import Counts, manifest_path
from megatron_ext.data.store.verify import VerifyOptions, bytes_to_read, verify_dataset
from tests.unit.data.described import random_records, write_run
from tests.unit.data.small import make_dataset

ALL = [
    "manifest", "file sizes", "record counts", "structure", "sha256 of .bin", "token ids", "document ends",
    "sha256 of .idx", "sha256 of .loss_mask", "loss-mask codes",
]  # fmt: skip


def verify(prefix: str, **options) -> dict[str, str]:
    """Check -> "" or what is wrong."""
    findings = verify_dataset(prefix, VerifyOptions(**options), lambda _: None)
    return {finding.check: str(finding.error or "") for finding in findings}


def failed(prefix: str, **options) -> list[str]:
    return [check for check, error in verify(prefix, **options).items() if error]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write_run(tmp_path / "x", random_records(0, 30))


def flip(path: str, place: int, bit: int = 1) -> None:
    content = bytearray(Path(path).read_bytes())
    content[place] ^= bit
    Path(path).write_bytes(content)


def test_a_sound_dataset_passes_every_check(prefix: str):
    assert list(verify(prefix)) == ALL
    assert not failed(prefix)
    assert list(verify(prefix, fast=True)) == ALL[:4]


def test_each_byte_is_read_once(prefix: str):
    told: list[int] = []
    list(verify_dataset(prefix, VerifyOptions(), told.append))
    assert sum(told) == bytes_to_read(prefix) > 0


def test_a_flipped_token_fails_its_checksum_and_more_if_it_leaves_the_vocabulary(prefix: str):
    flip(f"{prefix}.bin", 0)
    assert failed(prefix) == ["sha256 of .bin"]
    assert not failed(prefix, fast=True)
    flip(f"{prefix}.bin", 1, 0x80)
    assert failed(prefix) == ["sha256 of .bin", "token ids"]


def test_a_flipped_mask_code_fails(prefix: str):
    flip(f"{prefix}.loss_mask", 5, 4)
    assert failed(prefix) == ["sha256 of .loss_mask", "loss-mask codes"]


def test_a_damaged_index_does_not_end_the_verification(prefix: str):
    flip(f"{prefix}.idx", 40)
    assert failed(prefix) == ["structure", "sha256 of .idx"]


def test_a_truncated_or_missing_file_is_named_with_both_sizes(prefix: str):
    path = Path(f"{prefix}.bin")
    path.write_bytes(path.read_bytes()[:-2])
    found = verify(prefix)
    assert "structure" in failed(prefix) and "The manifest says" in found["file sizes"]
    path.unlink()
    found = verify(prefix)
    assert "No such file" in found["file sizes"] and "No such file" in found["bytes of .bin"]
    assert not found["sha256 of .idx"]


def test_a_changed_manifest_leaves_what_the_index_says(prefix: str):
    text = manifest_path(prefix).read_text()
    manifest_path(prefix).write_text(text.replace('"text"', '"texts"', 1))
    assert failed(prefix) == ["manifest", "structure"]


def test_records_that_do_not_add_up_are_told(tmp_path: Path):
    records = random_records(0, 10, bad_share=0)
    for name, change, message in (
        ("records", Counts(11, 9, 0, 1), "do not add up: 11 read = 9 written"),
        ("quarantined_by_reason", {"blank line": 1}, "by reason .* add up to 1"),
        ("inputs", [], "records of the inputs .* add up to 0"),
    ):
        prefix = write_run(tmp_path / name, records, **{name: change})
        assert failed(prefix) == ["record counts"], name
        assert message.split(" .* ")[0] in verify(prefix)["record counts"]


def test_a_dataset_without_manifest_needs_leave(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    assert failed(prefix) == ["manifest"]
    assert "--no-manifest" in verify(prefix)["manifest"]
    assert list(verify(prefix, needs_manifest=False)) == ["manifest", "structure", "token ids"]
    assert not failed(prefix, needs_manifest=False)
    assert failed(prefix, needs_manifest=False, tokenizer=TokenizerFlags("NullTokenizer", None, 1)) == ["tokenizer"]


def test_document_ends_are_checked_only_where_they_were_promised(tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(0, 30), append_eod=False)
    assert "document ends" not in verify(prefix)
    assert IndexedDataset(prefix).manifest is not None
    for name, is_checked in (("eos", False), ("bos", True)):
        prefix = write_run(tmp_path / name, random_records(0, 30), rows={"special_tokens": [[name, "</s>"]]})
        assert ("document ends" in verify(prefix)) == is_checked


def test_the_tokenizer_is_compared_when_it_is_named(prefix: str):
    assert "tokenizer" not in verify(prefix)
    assert not failed(prefix, tokenizer=TokenizerFlags("NullTokenizer", None, 1000))
    assert failed(prefix, tokenizer=TokenizerFlags(vocab_size=999)) == ["tokenizer"]
    assert failed(prefix, tokenizer=TokenizerFlags("Llama2Tokenizer", "absent.model")) == ["tokenizer"]
