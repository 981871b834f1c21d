"""Names, folders, patterns and standard input become input files: each once, in a fixed order, or a clear refusal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_ext.data.sources.inputs import FORMATS, InputFile, expand_inputs
from megatron_ext.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def found(folder: Path, *patterns: str, **settings: str) -> list[str]:
    files = expand_inputs([str(folder / pattern) for pattern in patterns], **settings)
    return [str(file.path.relative_to(folder)) for file in files if file.path]


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.jsonl", "jsonl", ""),
        ("a.ndjson.gz", "jsonl", "gz"),
        ("a.JSONL.GZ", "jsonl", "gz"),
        ("a.json.zst", "json", "zst"),
        ("a.pq", "parquet", ""),
        ("a.snappy.parquet", "parquet", ""),
        ("a.parquet.zst", "parquet", "zst"),
        ("a.txt.gz", "text", "gz"),
        ("part-00000", "jsonl", ""),
        ("part-00000.gz", "jsonl", "gz"),
        ("a.warc", "jsonl", ""),
    ],
)
def test_the_suffix_tells_the_format_unless_it_is_forced(tmp_path: Path, name: str, kind: str, compression: str):
    touch(tmp_path, name)
    path = tmp_path / name
    assert expand_inputs([str(path)]) == [InputFile(path, kind, compression)]
    for forced in FORMATS:
        assert expand_inputs([str(path)], forced) == [InputFile(path, forced, compression)]


def test_patterns_are_sorted_and_names_keep_their_order(tmp_path: Path):
    touch(tmp_path, "b.jsonl", "a.jsonl", "z.txt", "[x].jsonl")
    assert found(tmp_path, "z.txt", "*.jsonl") == ["z.txt", "[x].jsonl", "a.jsonl", "b.jsonl"]
    assert found(tmp_path, "[x].jsonl") == ["[x].jsonl"]
    assert found(tmp_path, "[ab].jsonl") == ["a.jsonl", "b.jsonl"]


def test_a_folder_gives_its_known_files_at_every_depth_and_one_warning(tmp_path: Path, capsys):
    touch(
        tmp_path,
        "b/2.jsonl.gz",
        "b/c/1.txt",
        "a.parquet",
        "README.md",
        "b/x.md",
        "b/NOTES",
        ".hidden.jsonl",
        ".g/a.txt",
    )
    touch(tmp_path, "all.jsonl.xz", "all.tar.gz")
    assert found(tmp_path, ".") == ["a.parquet", "b/2.jsonl.gz", "b/c/1.txt"]
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "5 files of --input are skipped" in warning
    assert "1 .xz" in warning
    assert "2 .md" in warning
    assert "1 without suffix" in warning
    assert found(tmp_path / "b", ".", input_format="text-file") == ["2.jsonl.gz", "NOTES", "c/1.txt", "x.md"]
    assert capsys.readouterr().err == ""


def test_a_pattern_may_name_folders(tmp_path: Path):
    touch(tmp_path, "x1/a.jsonl", "x2/b/c.jsonl", "x3.txt", "y/d.jsonl")
    assert found(tmp_path, "x*") == ["x1/a.jsonl", "x2/b/c.jsonl", "x3.txt"]
    assert found(tmp_path, "**/*.jsonl") == ["x1/a.jsonl", "x2/b/c.jsonl", "y/d.jsonl"]
    assert found(tmp_path, "x*/**/c.*") == ["x2/b/c.jsonl"]
    assert found(tmp_path, "**") == ["x1/a.jsonl", "x2/b/c.jsonl", "x3.txt", "y/d.jsonl"]


@pytest.mark.timeout(20)
def test_links_in_circles_do_not_hang(tmp_path: Path):
    touch(tmp_path, "d/e/a.jsonl")
    for name in ("up", "top"):  # with two of them, following every path would take 2^40 steps
        (tmp_path / "d" / "e" / name).symlink_to(tmp_path / "d")
    assert found(tmp_path, "d") == found(tmp_path, "d/**/*.jsonl") == ["d/e/a.jsonl"]


def test_standard_input_is_json_lines_unless_told_otherwise():
    assert expand_inputs(["-"]) == [InputFile(None, "jsonl")]
    assert expand_inputs(["-"], "parquet") == [InputFile(None, "parquet")]
    assert expand_inputs(["-"])[0].name == "standard input"
    assert expand_inputs(["-"])[0].size_bytes is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing.jsonl"], r"missing\.jsonl cannot be read"),
        (["*.parquet"], "matches no file"),
        (["**/*.parquet"], "matches no file"),
        (["nowhere/**/*.jsonl"], "matches no file"),
        (["empty"], "no file to read"),
        (["a.jsonl", "*.jsonl"], "twice"),
        (["a.jsonl", "link.jsonl"], "twice"),
        (["a.jsonl", "."], "twice"),
        (["loop"], "loop"),
        (["x.jsonl.xz"], "packed in a way"),
        (["x.tar.gz"], "packed in a way"),
    ],
)
def test_unusable_inputs_are_refused_by_name(tmp_path: Path, names: list[str], message: str):
    touch(tmp_path, "a.jsonl", "x.jsonl.xz", "x.tar.gz")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    with pytest.raises(DataError, match=message):
        expand_inputs([str(tmp_path / name) for name in names])


def test_other_mistakes_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="twice"):
        expand_inputs(["-", "-"])
    with pytest.raises(DataError, match="--input-format csv is unknown"):
        expand_inputs(["-"], "csv")
    os.mkfifo(tmp_path / "pipe")
    assert expand_inputs([str(tmp_path / "pipe")])[0].size_bytes is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.jsonl", "d"])
def test_unreadable_input_is_refused(tmp_path: Path, name: str):
    touch(tmp_path, "a.jsonl", "d/b.jsonl")
    (tmp_path / name).chmod(0)
    with pytest.raises(DataError, match=f"{name}.* cannot be read"):
        found(tmp_path, name)
    (tmp_path / name).chmod(0o755)
