"""What must not be joined is refused with the names of both parts and the values that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.data.store.manifest import InputFacts, TokenizerFacts
from megatron_ext.data.store.merge_rules import joined_manifest, open_parts
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.null import NullTokenizer
from tests.unit.data.described import random_records, write_run, write_shards
from tests.unit.data.small import make_dataset


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path / "x", random_records(0, 40), [10, 20])


def refused(prefixes: list[str], message: str, output: str = "out") -> None:
    with pytest.raises(DataError, match=message):
        open_parts(prefixes, output)


def test_shards_come_in_the_order_of_their_numbers(shards: list[str]):
    assert [part.prefix for part in open_parts([shards[2], shards[0], shards[1]], "out")] == shards


def test_all_shards_must_be_there_once(shards: list[str], tmp_path: Path):
    refused(shards[:2], r"shard 2 of 3 is missing.*from 0 to 2")
    refused([shards[1]], "shard 0, 2 of 3 is missing")
    again = write_run(tmp_path / "again", random_records(0, 9), shard=[1, 3])
    refused([*shards, again], r"again_text_document and .*x\.shard-1-of-3_text_document are both shard 1 of 3")
    other = write_run(tmp_path / "other", random_records(0, 9), shard=[1, 4])
    refused([shards[0], other], "is one of 4 shards, .* one of 3")


def test_shards_and_whole_datasets_are_not_mixed(shards: list[str], tmp_path: Path):
    whole = write_run(tmp_path / "whole", random_records(1, 9))
    refused([*shards, whole], "whole_text_document is not a shard")
    refused([whole, *shards], "whole_text_document is not a shard")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tool_version": "2"}, "with tool version 2.* with tool version 1"),
        ({"append_eod": False}, "with append_eod False"),
        ({"rows": {"row_format": "completion"}}, r"rows \{'row_format': 'completion'\}"),
        ({"key": "title"}, "with key title"),
        ({"tokenizer": TokenizerFacts("NullTokenizer", None, "f", 1001, 1000)}, "with tokenizer .*fingerprint='f'"),
    ],
)
def test_shards_of_unequal_settings_are_refused(shards: list[str], change: dict, message: str):
    write_run(shards[1].removesuffix("_text_document"), random_records(0, 9), shard=[1, 3], **change)
    refused(shards, message)


def test_each_machine_may_have_its_own_path_to_the_tokenizer(shards: list[str]):
    facts = TokenizerFacts("NullTokenizer", "elsewhere", NullTokenizer(1000).fingerprint, 1001, 1000)
    write_run(shards[1].removesuffix("_text_document"), random_records(0, 9), shard=[1, 3], tokenizer=facts)
    assert [part.manifest.tokenizer.model for part in open_parts(shards, "out")] == [None, "elsewhere", None]


def test_an_input_that_changed_between_shards_is_refused(shards: list[str]):
    manifests = [part.manifest for part in open_parts(shards, "out")]
    files = {".bin": manifests[0].bin_file, ".idx": manifests[0].idx_file}
    whole = joined_manifest(manifests, files).inputs
    assert [(entry.path, entry.size_bytes) for entry in whole] == [("a.jsonl", 100), ("b.jsonl", 100)]
    assert sum(entry.records for entry in whole) == 40
    manifests[1].inputs.append(InputFacts("a.jsonl", 101, 1))
    with pytest.raises(DataError, match=r"a\.jsonl had 100 bytes for a shard, 101 for another"):
        joined_manifest(manifests, files)


def test_a_shard_without_the_mask_of_the_others_is_refused(shards: list[str]):
    write_run(shards[1].removesuffix("_text_document"), random_records(0, 9), with_mask=False, shard=[1, 3])
    refused(shards, "has a loss mask, other shards")


def test_one_type_and_one_tokenizer(tmp_path: Path):
    write_indexed(tmp_path / "wide", [[1]], np.int32)
    refused([make_dataset(tmp_path), f"{tmp_path}/wide"], "wide holds int32 tokens, .*data holds uint16")
    first = write_run(tmp_path / "x", random_records(0, 9))
    second = write_run(tmp_path / "y", random_records(0, 9), made_with=NullTokenizer(999))
    refused([first, second], "y_text_document was made with the NullTokenizer of fingerprint")
    refused([first, make_dataset(tmp_path)], "data has no manifest, other parts have one")


def test_no_dataset_twice_and_none_into_itself(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    link = tmp_path / "link.idx"
    link.symlink_to(f"{prefix}.idx")
    refused([prefix, prefix], "names .*data twice")
    refused([prefix, f"{tmp_path}/link"], "names .*link twice")
    refused([prefix], "is an input and the output", output=f"{tmp_path}/../{tmp_path.name}/data")


def test_a_damaged_part_is_named(shards: list[str]):
    Path(f"{shards[1]}.bin").write_bytes(b"")
    refused(shards, r"x\.shard-1-of-3_text_document\.bin is truncated")
