"""Names of datasets on a command line, and the order of shards, which is that of their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.data.store.dataset_names import (
    ShardName,
    dataset_prefixes,
    quarantine_path,
    shard_name,
    shards_by_key,
)
from megatron_ext.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def test_a_prefix_may_be_named_by_any_of_its_files():
    assert dataset_prefixes(["a", "b.idx", "b.bin", "c.manifest.json", "d.loss_mask"]) == ["a", "b", "c", "d"]


def test_patterns_take_shards_by_number_and_other_names_by_letter(tmp_path: Path):
    touch(tmp_path, *(f"x.shard-{i}-of-11_text_document.idx" for i in range(11)), "x.shard-0-of-11_text_document.bin")
    found = dataset_prefixes([f"{tmp_path}/x.shard-*_text_document.*"])
    assert [shard_name(prefix) for prefix in found] == [ShardName(f"{tmp_path}/x", i, 11, "text") for i in range(11)]
    touch(tmp_path, "b.idx", "a.idx", "x.txt")
    assert dataset_prefixes([f"{tmp_path}/[ab].*"]) == [f"{tmp_path}/a", f"{tmp_path}/b"]


def test_a_name_with_brackets_that_exists_is_no_pattern(tmp_path: Path):
    touch(tmp_path, "a[1].idx")
    assert dataset_prefixes([f"{tmp_path}/a[1]"]) == [f"{tmp_path}/a[1]"]


def test_repetitions_and_patterns_without_a_match_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="a is given twice"):
        dataset_prefixes(["a", "b", "a"])
    touch(tmp_path, "a.txt")
    with pytest.raises(DataError, match="matches no dataset"):
        dataset_prefixes([f"{tmp_path}/a*"])


def test_the_shards_of_a_run_are_found_by_key(tmp_path: Path):
    names = [f"x.shard-{i}-of-2_{key}_document.idx" for i in (1, 0) for key in ("text", "my_title")]
    touch(
        tmp_path, *names, "x.shard-a-of-2_text_document.idx", "xx.shard-0-of-2_text_document.idx", "x_text_document.idx"
    )
    found = shards_by_key(f"{tmp_path}/x")
    assert {key: [shard_name(prefix).index for prefix in prefixes] for key, prefixes in found.items()} == {
        "text": [0, 1],
        "my_title": [0, 1],
    }
    with pytest.raises(DataError, match="no shard of"):
        shards_by_key(f"{tmp_path}/y")


def test_the_quarantine_lies_where_the_run_put_it():
    assert quarantine_path("d/out.shard-1-of-2_text_document", "text") == Path("d/out.shard-1-of-2.quarantine.jsonl")
    assert quarantine_path("d/else", "text") == Path("d/else.quarantine.jsonl")
