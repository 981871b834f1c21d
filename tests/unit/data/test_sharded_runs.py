"""The shards of a run, made apart and in any order, joined: every file has the bytes of one run (law L2)."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path

import pytest
import zstandard

from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess, shard_prefix
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.sources.shards import Shard
from megatron_ext.data.store.dataset_names import shards_by_key
from megatron_ext.data.store.manifest import read_manifest
from megatron_ext.errors import DataError
from tests.unit.data.sources.written import parquet_bytes
from tools import merge_datasets


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    defaults = read_blocks.__defaults__
    assert defaults is not None
    monkeypatch.setattr(read_blocks, "__defaults__", (*defaults[:2], 300, *defaults[3:]))


def records(dice: random.Random, count: int) -> list[dict]:
    """Records of numbers for two text keys; a few are bad or empty."""
    made = []
    for _ in range(count):
        context, completion = (" ".join(str(dice.randrange(90)) for _ in range(dice.randint(0, 9))) for _ in "ab")
        record = {"text": context, "context": context or "1", "completion": completion}
        if dice.random() < 0.2:
            record = dice.choice([{"text": None, "context": 3}, {"other": context}, {**record, "completion": None}])
        made.append(record)
    return made


def lines(made: list[dict], dice: random.Random) -> bytes:
    bad = [b"", b"{", b'{"text": "\xff"}', rb'{"text": "\ud800"}', b"[]"]
    return b"".join((dice.choice(bad) if dice.random() < 0.1 else json.dumps(one).encode()) + b"\n" for one in made)


def write_inputs(folder: Path, seed: int) -> tuple[str, ...]:
    """Files of every format whose names do not sort by size."""
    dice = random.Random(seed)
    folder.mkdir()
    table = [
        {"text": one.get("text"), "context": "5", "completion": one.get("completion")} for one in records(dice, 30)
    ]
    contents = {
        "a.jsonl": lines(records(dice, 150), dice),
        "b.jsonl.gz": gzip.compress(lines(records(dice, 60), dice)),
        "c.json": json.dumps(records(dice, 25), indent=1).encode(),
        "d.txt": b"\n".join(b"%d %d" % (number, number % 7) for number in range(90)) + b"\n\xff\nwords\n",
        "e.parquet": parquet_bytes(table, row_group_size=7),
        "f.jsonl.zst": zstandard.ZstdCompressor().compress(lines(records(dice, 60), dice)),
        "g.jsonl": b"",
        "h.jsonl": lines(records(dice, 100), dice)[:-1],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return (str(folder),)


ROWS = {
    "text": RowSettings(append_eod=True),
    "two keys": RowSettings(json_keys=("text", "completion")),
    "completion": RowSettings(row_format="completion", append_eod=True),
}


def request_for(inputs: tuple[str, ...], prefix: Path, rows: str) -> PreprocessRequest:
    return PreprocessRequest(inputs, str(prefix), "NullTokenizer", vocab_size=99, rows=ROWS[rows])


def content(prefix: Path) -> dict[str, bytes]:
    """The files of a whole run, by the ends of their names."""
    return {
        path.name.removeprefix(prefix.name): path.read_bytes()
        for path in prefix.parent.glob(f"{prefix.name}[._]*")
        if ".shard-" not in path.name
    }


def run_shards(request: PreprocessRequest, count: int, order: random.Random) -> None:
    for index in order.sample(range(count), count):
        preprocess(dataclasses.replace(request, shard=Shard(index, count), workers=1 + index % 2))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 13])
def test_joined_shards_are_one_run(count: int, rows: str, tmp_path: Path):
    inputs = write_inputs(tmp_path / "in", seed=count)
    preprocess(request_for(inputs, tmp_path / "whole", rows))
    whole = content(tmp_path / "whole")
    suffixes = (".bin", ".idx", ".manifest.json", *([".loss_mask"] if rows == "completion" else []))
    keys = ROWS[rows].json_keys or ("text",)
    assert len(whole) == len(suffixes) * len(keys) + 1, whole.keys()
    run_shards(request_for(inputs, tmp_path / "out", rows), count, random.Random(count))
    merge_datasets.main(["--shards", str(tmp_path / "out")])
    joined = content(tmp_path / "out")
    assert joined.keys() == whole.keys()
    for name in whole:
        assert joined[name] == whole[name], name


def test_each_record_is_in_one_shard(tmp_path: Path):
    inputs = write_inputs(tmp_path / "in", seed=0)
    (manifest,) = preprocess(request_for(inputs, tmp_path / "whole", "text"))
    request = request_for(inputs, tmp_path / "out", "text")
    parts = [preprocess(dataclasses.replace(request, shard=Shard(index, 4)))[0] for index in range(4)]
    assert sum(part.records.read for part in parts) == manifest.records.read
    for place, entry in enumerate(manifest.inputs):
        assert sum(part.inputs[place].records for part in parts) == entry.records
    assert sum(bool(part.inputs[0].records) for part in parts) > 1, "the first file is not cut"


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_shards_that_end_where_a_file_does(count: int, tmp_path: Path):
    (tmp_path / "in").mkdir()
    for number in range(12):
        line = b'{"text": "%02d"}\n' % number
        name, packed = (f"{number:02d}.jsonl.gz", gzip.compress(line)) if number % 2 else (f"{number:02d}.json", b"")
        (tmp_path / "in" / name).write_bytes(packed or line.ljust(len(gzip.compress(line))))
    request = request_for((str(tmp_path / "in"),), tmp_path / "out", "text")
    preprocess(dataclasses.replace(request, output_prefix=str(tmp_path / "whole")))
    run_shards(request, count, random.Random(0))
    merge_datasets.main(["--shards", str(tmp_path / "out")])
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_shard_of_nothing_is_a_dataset_of_nothing(tmp_path: Path):
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "1 2"}\n{"text": "3"}\n')
    request = request_for((str(tmp_path / "in.jsonl"),), tmp_path / "out", "text")
    preprocess(dataclasses.replace(request, output_prefix=str(tmp_path / "whole")))
    documents = [preprocess(dataclasses.replace(request, shard=Shard(index, 5)))[0].documents for index in range(5)]
    assert sorted(documents) == [0, 0, 0, 1, 1]
    merge_datasets.main(["--shards", str(tmp_path / "out")])
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_missing_shard_is_named(tmp_path: Path):
    inputs = write_inputs(tmp_path / "in", seed=0)
    request = request_for(inputs, tmp_path / "out", "text")
    for index in (0, 1, 3):
        preprocess(dataclasses.replace(request, shard=Shard(index, 4)))
    with pytest.raises(DataError, match="shard 2 of 4 is missing"):
        merge_datasets.main(["--shards", str(tmp_path / "out")])
    assert content(tmp_path / "out") == {}


def test_a_shard_that_is_not_finished_is_missing(tmp_path: Path):
    inputs = write_inputs(tmp_path / "in", seed=0)
    request = request_for(inputs, tmp_path / "out", "text")
    run_shards(request, 2, random.Random(0))
    Path(f"{shard_prefix(request.output_prefix, Shard(1, 2))}_text_document.idx").unlink()
    with pytest.raises(DataError, match="shard 1 of 2 is missing"):
        merge_datasets.main(["--shards", str(tmp_path / "out")])


def test_shards_of_other_flags_or_inputs_do_not_join(tmp_path: Path):
    inputs = write_inputs(tmp_path / "in", seed=0)
    request = request_for(inputs, tmp_path / "out", "text")
    first = dataclasses.replace(request, shard=Shard(0, 2))
    second = dataclasses.replace(request, shard=Shard(1, 2), overwrite=True)
    preprocess(first)
    preprocess(dataclasses.replace(second, rows=RowSettings()))
    with pytest.raises(DataError, match="append_eod"):
        merge_datasets.main(["--shards", str(tmp_path / "out")])
    (tmp_path / "in" / "h.jsonl").write_bytes(b'{"text": "1"}\n')
    preprocess(second)
    with pytest.raises(DataError, match=r"h\.jsonl had \d+ bytes for a shard, 14 for another"):
        merge_datasets.main(["--shards", str(tmp_path / "out")])


def test_a_shard_resumes_and_is_complete_like_a_run(tmp_path: Path, capsys):
    inputs = write_inputs(tmp_path / "in", seed=0)
    request = dataclasses.replace(request_for(inputs, tmp_path / "out", "text"), shard=Shard(1, 3), resume=True)
    (first,) = preprocess(request)
    assert preprocess(request) == [first]
    assert "complete already" in capsys.readouterr().out
    assert read_manifest(shards_by_key(str(tmp_path / "out"))["text"][0]) == first
