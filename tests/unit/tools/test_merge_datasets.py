"""A run in shards, joined by the command, leaves the files of one run; flags that make no sense are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.errors import ConfigError, DataError
from tests.unit.data.described import contents, random_records, write_run, write_shards
from tools import merge_datasets, preprocess_data

PREPROCESS = [
    "--tokenizer-type",
    "NullTokenizer",
    "--vocab-size",
    "100",
    "--append-eod",
    "--json-keys",
    "text",
    "title",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in "abc":
        lines = [f'{{"text": "{i % 100} 7", "title": "{i % 9 or ""}"}}' if i % 13 else "{broken" for i in range(200)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_shards_of_a_real_run_become_what_one_run_writes(corpus: Path, tmp_path: Path, capsys):
    words = ["--input", str(corpus), *PREPROCESS]
    preprocess_data.main([*words, "--output-prefix", f"{tmp_path}/one"])
    for index in range(5):
        preprocess_data.main([*words, "--output-prefix", f"{tmp_path}/out", "--shard", f"{index}/5"])
    merge_datasets.main(["--shards", f"{tmp_path}/out"])
    whole = contents(tmp_path / "one")
    assert set(whole) >= {".quarantine.jsonl", "_text_document.manifest.json", "_title_document.bin"}
    joined = {name: content for name, content in contents(tmp_path / "out").items() if not name.startswith(".shard-")}
    assert joined == whole
    assert "out_title_document: 5 datasets" in capsys.readouterr().out
    with pytest.raises(DataError, match="exists already"):
        merge_datasets.main(["--shards", f"{tmp_path}/out"])
    merge_datasets.main(["--shards", f"{tmp_path}/out", "--overwrite"])
    Path(f"{tmp_path}/out.shard-3-of-5_text_document.idx").unlink()
    with pytest.raises(DataError, match="shard 3 of 5 is missing"):
        merge_datasets.main(["--shards", f"{tmp_path}/out", "--output-prefix", f"{tmp_path}/again"])


def test_a_pattern_of_shards_and_another_place(tmp_path: Path):
    records = random_records(0, 60)
    write_run(tmp_path / "one", records)
    write_shards(tmp_path / "x", records, [7, 20, 33])
    (tmp_path / "else").mkdir()
    words = [
        "--input",
        f"{tmp_path}/x.shard-*_text_document.idx",
        "--output-prefix",
        f"{tmp_path}/else/one_text_document",
    ]
    merge_datasets.main(words)
    assert contents(tmp_path / "else" / "one") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --shards or --input"),
        (["--shards", "a", "--input", "b"], "either --shards or --input"),
        (["--input", "a"], "--input needs --output-prefix"),
        (["--inputs", "a", "--shards", "x"], "nearest flag is --input"),
    ],
)
def test_flags_that_do_not_say_what_to_join_are_refused(words: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        merge_datasets.main(words)


def test_nothing_to_join_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no shard of"):
        merge_datasets.main(["--shards", f"{tmp_path}/x"])
    with pytest.raises(DataError, match="given twice"):
        merge_datasets.main(["--input", "a", "a", "--output-prefix", f"{tmp_path}/x"])
