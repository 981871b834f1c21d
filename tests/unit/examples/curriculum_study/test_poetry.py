"""The corpus of the study: documents of every kind in a hashed order, bounded, without repeats, never half a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.curriculum_study import poetry

LINE = "一二三四五六七八九十。"
LINES = [LINE * n for n in range(1, 15)]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    files = {
        "quantangshi/poet.tang.0.json": [{"title": f"甲{n}", "paragraphs": [LINE, LINE]} for n in range(50)],
        "quantangshi/poet.song.0.json": [{"title": f"乙{n}", "paragraphs": [LINE, LINE]} for n in range(5)],
        "quantangshi/authors.tang.json": [{"name": "丙", "paragraphs": [LINE, LINE]}],
        "mengxue/book.json": {"title": "书", "content": [{"chapter": "丁", "paragraphs": LINES}]},
        "yuanqu/yuanqu.json": [{"title": "戊", "paragraphs": ["短"]}],
    }
    for name, content in files.items():
        path = folder / "dist" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "package.json").write_text('{"name": "poems", "version": "1", "license": "MIT"}', encoding="utf-8")
    return folder


def written(package: Path, output: Path, *flags: str) -> list[dict[str, str]]:
    assert poetry.main(["--package", str(package), "--output", str(output), *flags]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_every_kind_is_read_and_short_texts_and_biographies_are_not(package: Path, tmp_path: Path):
    rows = written(package, tmp_path / "corpus.jsonl")
    kinds = [row["source"] for row in rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"tang": 50, "song": 5, "primer": 4}
    assert {row["text"] for row in rows if row["source"] == "song"} == {f"乙{n}\n{LINE}\n{LINE}" for n in range(5)}


def test_long_chapters_are_cut_at_the_ends_of_lines_and_lose_nothing(package: Path, tmp_path: Path):
    texts = [row["text"] for row in written(package, tmp_path / "corpus.jsonl") if row["source"] == "primer"]
    assert max(map(len, texts)) <= poetry.LONG_DOCUMENT + len(LINES)  # and the line ends
    assert sorted("\n".join(texts).split("\n")) == sorted(["丁", *LINES])


def test_a_limit_holds_for_each_kind_and_every_part_of_the_file_holds_all_kinds(package: Path, tmp_path: Path):
    rows = written(package, tmp_path / "corpus.jsonl", "--max-characters", "130")
    kinds = [row["source"] for row in rows]
    assert kinds.count("tang") == kinds.count("song") == 5  # the fifth document of 26 characters fills 130
    full = [row["source"] for row in written(package, tmp_path / "full.jsonl")]
    assert full != sorted(full)


def test_the_order_is_not_the_one_that_chose_the_documents(package: Path, tmp_path: Path):
    """Otherwise a kind of which little is taken would stand at the front, and none of it in the validation part."""
    rows = written(package, tmp_path / "corpus.jsonl")
    hashes = [poetry.hashed(row["text"]) for row in rows]
    assert hashes != sorted(hashes)


def test_the_file_is_the_same_each_time_and_nothing_else_is_left(package: Path, tmp_path: Path):
    first, second = tmp_path / "a" / "one.jsonl", tmp_path / "a" / "two.jsonl"
    assert written(package, first) == written(package, second)
    assert sorted(first.parent.iterdir()) == [first, second]


def test_a_folder_that_is_no_such_package_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert poetry.main(["--package", str(tmp_path), "--output", str(tmp_path / "corpus.jsonl")]) == 1
    assert "no dist/" in capsys.readouterr().err
    assert not (tmp_path / "corpus.jsonl").exists()
