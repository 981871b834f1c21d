"""Every class of bad input file is refused with its name and place, or read to the last record that it has."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard

from megatron_ext.data.preprocessing.preprocess import preprocess
from megatron_ext.data.sources.shards import Shard
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import EncodedBatch
from tests.unit.data.byte_tokenizer import ByteTokenizer, use_tokenizer
from tests.unit.data.preprocessed import bytes_request, left_at, outcome
from tests.unit.data.sources.written import parquet_bytes

TEXTS = [f"text {number} 中文" for number in range(200)]
LINES = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in TEXTS)
ARRAY = b"[" + b",\n".join(LINES.splitlines()) + b"]"
GZ = gzip.compress(LINES)
ZST = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
PARQUET = parquet_bytes([{"text": text} for text in TEXTS], row_group_size=50)
CUT = LINES.index("中".encode(), 1000) + 1


@pytest.fixture(autouse=True)
def byte_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tokenizer(monkeypatch, ByteTokenizer())
    monkeypatch.setattr("os.fsync", lambda _: None)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1 :]


DAMAGED: dict[str, tuple[str, bytes]] = {
    **{f"gz cut to {size} bytes": ("x.jsonl.gz", GZ[:size]) for size in (1, 9, 10, 40, len(GZ) - 9, len(GZ) - 1)},
    **{f"zst cut to {size} bytes": ("x.jsonl.zst", ZST[:size]) for size in (1, 3, 8, 60, len(ZST) - 1)},
    "gz whose second member is cut": ("x.jsonl.gz", GZ + GZ[:-1]),
    "zst whose second frame is cut": ("x.jsonl.zst", ZST + ZST[:-1]),
    "gz with a wrong checksum": ("x.jsonl.gz", flipped(GZ, len(GZ) - 6)),
    "gz with a wrong length": ("x.jsonl.gz", flipped(GZ, len(GZ) - 3)),
    "zst with a wrong checksum": ("x.jsonl.zst", flipped(ZST, len(ZST) - 2)),
    "gz followed by something else": ("x.jsonl.gz", GZ + b"something else"),
    "zst followed by something else": ("x.jsonl.zst", ZST + b"something else"),
    "plain text named gz": ("x.jsonl.gz", LINES),
    "plain text named zst": ("x.jsonl.zst", LINES),
    "gz named as plain text": ("x.jsonl", GZ),
    "zst named as plain text": ("x.txt", ZST),
    "gz named zst": ("x.jsonl.zst", GZ),
    "array without its end": ("x.json", ARRAY[:-1]),
    "array cut inside a text": ("x.json", ARRAY[: len(ARRAY) // 2]),
    "array with more behind it": ("x.json", ARRAY + b"{}"),
    "array in a cut gz": ("x.json.gz", gzip.compress(ARRAY)[:-20]),
    "parquet cut in the middle": ("x.parquet", PARQUET[: len(PARQUET) // 2]),
    "parquet without its last byte": ("x.parquet", PARQUET[:-1]),
    "parquet without its beginning": ("x.parquet", PARQUET[4:]),
    "empty parquet": ("x.parquet", b""),
    "text named parquet": ("x.parquet", LINES),
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_with_the_record_before_the_damage(name: str, workers: int, tmp_path: Path):
    file, content = DAMAGED[name]
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / file).write_bytes(content)
    request = bytes_request((tmp_path / "a.jsonl", tmp_path / file), tmp_path / "out", workers=workers)
    with pytest.raises(DataError, match=rf"{file} is damaged after record \d+ \(.+\)"):
        preprocess(request)
    assert left_at(tmp_path / "out") == set()


WHOLE: dict[str, tuple[str, bytes, int]] = {
    "gz of many members": ("x.jsonl.gz", b"".join(map(gzip.compress, LINES.splitlines(keepends=True))), 200),
    "gz members that cut a character": ("x.jsonl.gz", gzip.compress(LINES[:CUT]) + gzip.compress(LINES[CUT:]), 200),
    "gz filled up with zeros": ("x.jsonl.gz", GZ + bytes(5000), 200),
    "zst of many frames": ("x.jsonl.zst", ZST * 3, 600),
    "an empty frame between": ("x.jsonl.zst", ZST + zstandard.ZstdCompressor().compress(b"") + ZST, 400),
    "gz of nothing and more": ("x.jsonl.gz", gzip.compress(b"") + GZ, 200),
    "byte order mark": ("x.jsonl", b"\xef\xbb\xbf" + LINES, 200),
    "byte order mark of an array": ("x.json", b"\xef\xbb\xbf" + ARRAY, 200),
    "CR LF line ends": ("x.jsonl", LINES.replace(b"\n", b"\r\n"), 200),
    "no final line end": ("x.jsonl", LINES[:-1], 200),
    "lines named as an array": ("x.json", LINES, 200),
    "unknown suffix": ("x.data", LINES, 200),
    "no suffix": ("corpus", LINES, 200),
    "upper-case suffixes": ("X.JSONL.GZ", GZ, 200),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_an_odd_file_is_read_whole(name: str, tmp_path: Path):
    file, content, count = WHOLE[name]
    (tmp_path / file).write_bytes(content)
    found = outcome((tmp_path / file,), tmp_path / "out")
    assert found.documents == TEXTS * (count // 200)
    assert not found.bad


def test_empty_files_between_others(tmp_path: Path):
    for name, content in {"a.jsonl": b"", "b.jsonl": LINES, "c.txt": b"", "d.jsonl.gz": b"", "e.jsonl": b""}.items():
        (tmp_path / name).write_bytes(content)
    found = outcome((tmp_path / "*",), tmp_path / "out")
    assert found.documents == TEXTS
    assert [entry.records for entry in found.manifest.inputs] == [0, 200, 0, 0, 0]


# names ----------------------------------------------------------------------------------------------------------


def circular(folder: Path) -> list[Path]:
    (folder / "a.jsonl").symlink_to("b.jsonl")
    (folder / "b.jsonl").symlink_to("a.jsonl")
    return [folder / "a.jsonl"]


def broken_link(folder: Path) -> list[Path]:
    (folder / "a.jsonl").symlink_to("nowhere.jsonl")
    return [folder / "a.jsonl"]


def twice(folder: Path) -> list[Path]:
    (folder / "a.jsonl").write_bytes(LINES)
    return [folder / "a.jsonl"] * 2


def twice_by_a_link(folder: Path) -> list[Path]:
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.jsonl").symlink_to("a.jsonl")
    return [folder]


def empty_folder(folder: Path) -> list[Path]:
    (folder / "empty").mkdir()
    return [folder / "empty"]


def folder_in_circles(folder: Path) -> list[Path]:
    (folder / "inner").mkdir()
    (folder / "inner" / "back").symlink_to(folder)
    return [folder]


REFUSED: dict[str, tuple[Callable[[Path], list[Path]], str]] = {
    "missing": (lambda folder: [folder / "none.jsonl"], r"none\.jsonl cannot be read \(No such file"),
    "pattern without a match": (lambda folder: [folder / "*.jsonl"], "matches no file"),
    "circle of links": (circular, r"a\.jsonl cannot be read \(Too many levels"),
    "link to nothing": (broken_link, r"a\.jsonl cannot be read \(No such file"),
    "the same file twice": (twice, r"a\.jsonl twice"),
    "the same file by another name": (twice_by_a_link, r"b\.jsonl twice"),
    "empty folder": (empty_folder, "has no file to read"),
    "folder that holds itself": (folder_in_circles, "has no file to read"),
    "below a file": (lambda folder: [*twice(folder)[:1], folder / "a.jsonl" / "b"], "cannot be read"),
    "name too long": (lambda folder: [folder / ("x" * 300)], "cannot be read"),
    "device": (lambda folder: [Path(os.devnull)], "no document was found in 0 records"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_name_is_refused(name: str, tmp_path: Path):
    make, message = REFUSED[name]
    (tmp_path / "in").mkdir()
    inputs = make(tmp_path / "in")
    with pytest.raises(DataError, match=message):
        preprocess(bytes_request(tuple(inputs), tmp_path / "out"))
    assert left_at(tmp_path / "out") == set()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused(tmp_path: Path):
    path = twice(tmp_path)[0]
    path.chmod(0)
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read \(Permission denied"):
        preprocess(bytes_request((path,), tmp_path / "out"))


def test_a_folder_is_read_to_its_depths_although_a_link_leads_back(tmp_path: Path):
    inner = tmp_path / "in" / "inner"
    inner.mkdir(parents=True)
    (inner / "back").symlink_to(tmp_path / "in")
    (inner / "x.jsonl").write_bytes(LINES)
    assert outcome((tmp_path / "in",), tmp_path / "out").documents == TEXTS


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fifo_is_read_once_and_whole(workers: int, tmp_path: Path):
    os.mkfifo(tmp_path / "x.jsonl")
    writer = threading.Thread(target=(tmp_path / "x.jsonl").write_bytes, args=(LINES * 20,))
    writer.start()
    found = outcome((tmp_path / "x.jsonl",), tmp_path / "out", workers=workers)
    writer.join()
    assert found.documents == TEXTS * 20
    with pytest.raises(DataError, match="cannot be read in shards"):
        request = bytes_request((tmp_path / "x.jsonl",), tmp_path / "shard")
        preprocess(dataclasses.replace(request, shard=Shard(0, 2)))


# files that change while they are read --------------------------------------------------------------------------


class Meanwhile(ByteTokenizer):
    """Lets something happen once, while the first texts are tokenized for the dataset."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self._happens: Callable[[], object] | None = happens

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        if self._happens is not None:
            self._happens()
            self._happens = None
        return super().encode_batch(texts)


def test_a_file_that_grows_is_read_without_losing_what_was_there(tmp_path: Path, monkeypatch, capsys):
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES)

    def grow() -> None:
        with path.open("ab") as stream:
            stream.write(LINES[: len(LINES) // 2])  # ends within a line

    use_tokenizer(monkeypatch, Meanwhile(grow))
    found = outcome((path,), tmp_path / "out")
    assert found.documents[:200] == TEXTS
    assert found.documents[200:] == TEXTS[: len(found.documents) - 200]
    assert found.manifest.inputs[0].size_bytes == len(LINES)
    assert "changed its size while it was read" in capsys.readouterr().err


def test_a_file_that_shrinks_gives_what_was_there_and_a_warning(tmp_path: Path, monkeypatch, capsys):
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINES * 200)
    use_tokenizer(monkeypatch, Meanwhile(lambda: os.truncate(path, 0)))
    found = outcome((path,), tmp_path / "out")
    assert found.documents
    assert found.documents[:200] == TEXTS
    assert "changed its size while it was read" in capsys.readouterr().err


def test_a_file_that_vanishes_before_its_turn_is_refused(tmp_path: Path, monkeypatch):
    inputs = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in inputs:
        path.write_bytes(LINES)
    use_tokenizer(monkeypatch, Meanwhile(inputs[1].unlink))
    with pytest.raises(DataError, match=r"b\.jsonl failed after record 0 \(No such file"):
        preprocess(bytes_request(inputs, tmp_path / "out"))
    assert left_at(tmp_path / "out") == set()
