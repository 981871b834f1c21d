"""Shards joined are one run, byte for byte; other datasets joined are what megatron-core's own merge makes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset as CoreDataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.loss_mask import LEARNED
from megatron_ext.data.store.manifest import manifest_path
from megatron_ext.data.store.merge import MergeRequest, bytes_to_copy, merge_datasets
from megatron_ext.data.store.verify import VerifyOptions, verify_dataset
from megatron_ext.errors import DataError
from tests.unit.data.described import contents, mask_of, random_records, write_run, write_shards
from tests.unit.data.small import make_dataset, random_documents


def merge(prefixes: list[str], output: Path | str, overwrite: bool = False):
    return merge_datasets(MergeRequest(tuple(prefixes), str(output), overwrite))


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_joined_shards_have_the_bytes_of_one_run(data: st.DataObject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    records = random_records(data.draw(st.integers(0, 99)), 40, ("a", 'quo"te', "中文.jsonl"), bad_share=0.2)
    cuts = sorted(data.draw(st.lists(st.integers(0, 40), max_size=7)))
    with_mask = data.draw(st.booleans())
    inputs = data.draw(st.sampled_from([None, ["a", 'quo"te', "中文.jsonl"]]))  # a shard may list all of them
    write_run(folder / "whole", records, with_mask, inputs)
    (folder / "out").mkdir()
    prefixes = write_shards(folder / "part", records, cuts, with_mask=with_mask, inputs=inputs)
    with mock.patch("os.fsync"):
        merge(data.draw(st.permutations(prefixes)), folder / "out" / "whole_text_document")
    assert contents(folder / "out" / "whole") == contents(folder / "whole")


def test_nothing_quarantined_leaves_no_quarantine_file(tmp_path: Path):
    records = random_records(0, 20, bad_share=0)
    merge(write_shards(tmp_path / "part", records, [5]), tmp_path / "out_text_document")
    assert "out.quarantine.jsonl" not in {path.name for path in tmp_path.iterdir()}


def test_datasets_of_megatron_core_give_what_its_own_merge_gives(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("megatron_ext.data.store.merge._BLOCK", 3)
    builder = IndexedDatasetBuilder(f"{tmp_path}/core.bin", dtype=np.uint16)
    for index in range(3):
        part = IndexedDatasetBuilder(f"{tmp_path}/part{index}.bin", dtype=np.uint16)
        for seed in range(5 * index):
            lengths = [len(row) for row in random_documents(seed, seed % 3)]  # several sequences, or none at all
            part.add_document(np.arange(sum(lengths), dtype=np.uint16), lengths)
        part.finalize(f"{tmp_path}/part{index}.idx")
        builder.add_index(f"{tmp_path}/part{index}")
    builder.finalize(f"{tmp_path}/core.idx")
    result = merge([f"{tmp_path}/part{index}" for index in range(3)], tmp_path / "ours")
    assert result.manifest is None and not manifest_path(tmp_path / "ours").exists()
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"core.{suffix}").read_bytes()
    assert len(CoreDataset(str(tmp_path / "ours"))) == len(IndexedDataset(tmp_path / "ours")) > 0


def test_other_datasets_are_joined_in_the_order_given_and_what_has_no_mask_is_learned_whole(tmp_path: Path):
    first = write_run(tmp_path / "x", random_records(1, 30), rows={"row_format": "text", "fim_rate": 0.5})
    second = write_run(tmp_path / "y", random_records(2, 30), with_mask=False, key="body")
    result = merge([second, first], tmp_path / "both")
    parts, both = [IndexedDataset(second), IndexedDataset(first)], IndexedDataset(tmp_path / "both")
    assert both.tokens.tolist() == [*parts[0].tokens.tolist(), *parts[1].tokens.tolist()]
    assert both.loss_mask is not None
    assert both.loss_mask.tolist() == [LEARNED] * parts[0].num_tokens + list(mask_of(parts[1].tokens.tolist()))
    manifest = result.manifest
    assert manifest == both.manifest and manifest is not None
    assert manifest.records.read == 60 and [entry.path for entry in manifest.inputs] == ["a.jsonl", "b.jsonl"] * 2
    assert manifest.rows == {"row_format": "text", "fim_rate": [None, 0.5]} and manifest.key == "body+text"
    assert all(finding.ok for finding in verify_dataset(f"{tmp_path}/both", VerifyOptions(), lambda _: None))


def test_a_damaged_part_is_found_while_it_is_copied_and_leaves_nothing(tmp_path: Path):
    records = random_records(0, 20)
    for suffix in (".bin", ".loss_mask"):
        prefixes = write_shards(tmp_path / "part", records, [10])
        path = Path(prefixes[1] + suffix)
        content = bytearray(path.read_bytes())
        content[3] ^= 1
        path.write_bytes(content)
        before = {path.name for path in tmp_path.iterdir()}
        with pytest.raises(DataError, match=rf"part\.shard-1-of-2_text_document{suffix} is damaged"):
            merge(prefixes, tmp_path / "out_text_document")
        assert {path.name for path in tmp_path.iterdir()} == before


def test_an_output_that_exists_is_replaced_only_when_asked(tmp_path: Path):
    records = random_records(0, 20)
    prefixes = write_shards(tmp_path / "part", records, [10])
    target = tmp_path / "out_text_document"
    write_run(tmp_path / "out", random_records(5, 9))
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=r"out_text_document\.bin exists already"):
        merge(prefixes, target)
    assert contents(tmp_path / "out") == before
    merge(prefixes, target, overwrite=True)
    write_run(tmp_path / "whole", records)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for suffix in (".bin", ".idx", ".loss_mask", ".manifest.json"):
        Path(f"{target}{suffix}").unlink()
    merge(prefixes, target)  # the same quarantine, written when the run's other key was joined, is no obstacle
    (tmp_path / "out.quarantine.jsonl").write_text("other\n")
    for suffix in (".bin", ".idx", ".loss_mask", ".manifest.json"):
        Path(f"{target}{suffix}").unlink()
    with pytest.raises(DataError, match=r"out\.quarantine\.jsonl exists already"):
        merge(prefixes, target)


def test_a_merge_without_mask_or_quarantine_leaves_no_old_ones(tmp_path: Path):
    write_run(tmp_path / "out", random_records(5, 30))
    prefixes = write_shards(tmp_path / "part", random_records(0, 20, bad_share=0), [10], with_mask=False)
    merge(prefixes, tmp_path / "out_text_document", overwrite=True)
    assert set(contents(tmp_path / "out")) == {f"_text_document{end}" for end in (".bin", ".idx", ".manifest.json")}


@pytest.mark.parametrize("step", range(5))
def test_a_merge_that_dies_while_publishing_leaves_the_old_the_new_or_nothing(step: int, tmp_path: Path, monkeypatch):
    def content(prefix: str | Path) -> tuple[list[int], list[int]]:
        dataset = IndexedDataset(prefix)
        assert dataset.loss_mask is not None
        findings = verify_dataset(str(prefix), VerifyOptions(needs_manifest=False), lambda _: None)
        assert all(finding.ok for finding in findings)  # no old manifest beside new files
        return dataset.tokens.tolist(), dataset.loss_mask.tolist()

    records = random_records(0, 20)
    prefixes = write_shards(tmp_path / "part", records, [10])
    # the old data has the same lengths, so that no size tells its files from the new ones
    others = [dataclasses.replace(each, tokens=each.tokens and [7] * len(each.tokens)) for each in records]
    old = content(write_run(tmp_path / "out", others))
    merge(prefixes, tmp_path / "new")
    steps = iter(range(5))

    def killed(_: object) -> None:
        if next(steps) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr("megatron_ext.data.preprocessing.pending.fsync_path", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(prefixes, tmp_path / "out_text_document", overwrite=True)
    try:
        found = content(tmp_path / "out_text_document")
    except DataError:
        return
    assert found == (old if step == 0 else content(tmp_path / "new"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-1], r"holds 1 records.*2 were quarantined"),
        (lambda lines: [*lines, lines[0]], r"holds 3 records.*2 were quarantined"),
        (lambda lines: [b"{}\n", lines[1]], r"line 1 of .*quarantine\.jsonl is not a quarantined record"),
        (lambda lines: [lines[0], lines[1][:-1]], r"line 2 of .*is not a quarantined record"),
        (None, r"quarantine\.jsonl cannot be read"),
    ],
)
def test_a_wrong_quarantine_is_refused(damage, message: str, tmp_path: Path):
    records = [dataclasses.replace(record, tokens=[1]) for record in random_records(0, 20)]
    records[3] = records[4] = dataclasses.replace(records[3], tokens=None)
    prefixes = write_shards(tmp_path / "part", records, [10])
    path = tmp_path / "part.shard-0-of-2.quarantine.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    if damage is not None:
        path.write_bytes(b"".join(damage(lines)))
    with pytest.raises(DataError, match=message):
        merge(prefixes, tmp_path / "out_text_document")
    assert not contents(tmp_path / "out")


def test_the_bytes_to_copy_are_what_the_progress_bar_is_told(tmp_path: Path):
    prefixes = write_shards(tmp_path / "part", random_records(0, 20), [3, 10])
    told: list[int] = []
    merge_datasets(MergeRequest(tuple(prefixes), str(tmp_path / "out")), told.append)
    assert sum(told) == bytes_to_copy(prefixes) > 0


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file of --output-prefix cannot be made"):
        merge([make_dataset(tmp_path)], tmp_path / "file" / "out")
