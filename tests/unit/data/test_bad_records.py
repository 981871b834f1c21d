"""Every class of bad record costs that record alone: its neighbours are written, itself is listed, counts add up."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard

from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.preprocessing.preprocess import preprocess
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.pieces import ReadOptions
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.store.indexed import HEADER, IndexedDataset
from megatron_ext.errors import DataError, TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch, batch_of_lists
from tests.unit.data.byte_tokenizer import ByteTokenizer, use_tokenizer
from tests.unit.data.line_classes import BAD_LINES, ODD_LINES
from tests.unit.data.preprocessed import Bad, bytes_request, left_at, outcome, quarantined


@pytest.fixture(autouse=True)
def byte_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tokenizer(monkeypatch, ByteTokenizer())
    monkeypatch.setattr("os.fsync", lambda _: None)  # nothing here need outlive a power failure


def good(number: int) -> bytes:
    return b'{"text": "good %d"}' % number


def told(line: bytes) -> bytes:
    """A line as the quarantine lists it."""
    return line.removesuffix(b"\r")


# lines ----------------------------------------------------------------------------------------------------------


def test_there_are_more_than_sixty_classes():
    assert len(BAD_LINES) >= 60


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_between_good_ones(name: str, tmp_path: Path):
    line, reason = BAD_LINES[name]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([good(1), line, line, good(2), line, good(3), line]) + b"\n")
    found = outcome((path,), tmp_path / "out")
    assert found.documents == ["good 1", "good 2", "good 3"]
    assert found.bad == [Bad(str(path), number, reason, told(line)) for number in (2, 3, 5, 7)]


@pytest.mark.parametrize("name", [name for name in BAD_LINES if name != "blank line"])
def test_a_file_of_nothing_but_a_bad_line(name: str, tmp_path: Path):
    line, reason = BAD_LINES[name]
    path = tmp_path / "in.jsonl"
    path.write_bytes(line)
    if line.startswith(b"\xef\xbb\xbf"):  # at the start of a file it belongs there
        assert outcome((path,), tmp_path / "out").documents == ["a"]
        return
    with pytest.raises(DataError, match="no document was found in 1 records"):
        preprocess(bytes_request((path,), tmp_path / "out"))
    assert quarantined(tmp_path / "out") == [Bad(str(path), 1, reason, told(line))]
    assert left_at(tmp_path / "out") == {".quarantine.jsonl"}


@pytest.mark.parametrize("name", ODD_LINES)
def test_an_odd_line_gives_its_text(name: str, tmp_path: Path):
    line, text = ODD_LINES[name]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([good(1), line, good(2), line]))
    found = outcome((path,), tmp_path / "out")
    assert found.bad == []
    assert found.documents == [one for one in ("good 1", text, "good 2", text) if one]
    assert found.manifest.records.empty == (0 if text else 2)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_all_classes_in_one_file(workers: int, packing: str, tmp_path: Path):
    lines, texts, bad = [], [], []
    path = tmp_path / f"in.jsonl{packing}"
    for number, (line, reason) in enumerate(BAD_LINES.values()):
        lines += [good(number), line]
        texts.append(f"good {number}")
        bad.append(Bad(str(path), len(lines), reason, told(line)))
    for line, text in ODD_LINES.values():
        lines.append(line)
        texts += [text] if text else []
    content = b"\n".join(lines)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    path.write_bytes(pack(content))
    found = outcome((path,), tmp_path / "out", workers=workers)
    assert found.documents == texts
    assert found.bad == bad


def test_the_first_bad_line_stops_a_run_that_is_told_so(tmp_path: Path):
    path = tmp_path / "in.jsonl"
    for line, reason in BAD_LINES.values():
        path.write_bytes(b"\n".join([good(1), line, good(2)]))
        with pytest.raises(DataError, match=rf"line 2 of .*in\.jsonl is bad: {reason}"):
            preprocess(bytes_request((path,), tmp_path / "out", stop_on_error=True))
        assert left_at(tmp_path / "out") == set()


def test_lines_of_text_are_taken_as_they_are(tmp_path: Path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"a\n\n\x00\n\xff\n  \n\xc0\xaf b\r\n" + "\u2028中\r\n{".encode())
    found = outcome((path,), tmp_path / "out")
    assert found.documents == ["a", "\x00", "  ", "\u2028中", "{"]
    assert found.manifest.records.empty == 1
    assert found.reasons == [(4, "invalid UTF-8"), (6, "invalid UTF-8")]
    assert [bad.raw for bad in found.bad] == [b"\xff", b"\xc0\xaf b"]


def test_a_line_beyond_the_limit_is_skipped_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The limit is 2**30 bytes; here it is 10,000 in blocks of 1,000."""
    defaults = read_blocks.__defaults__
    assert defaults is not None
    monkeypatch.setattr(read_blocks, "__defaults__", (*defaults[:2], 1000, ReadOptions(max_record_bytes=10_000)))
    path = tmp_path / "in.jsonl"
    long = b'{"text": "' + b"x" * 50_000 + b'"}'
    path.write_bytes(b"\n".join([good(1), long, good(2), long[:10_001], good(3)]))
    found = outcome((path,), tmp_path / "out", workers=2)
    assert found.documents == ["good 1", "good 2", "good 3"]
    assert found.reasons == [(2, "too long"), (4, "too long")]
    assert all(bad.raw.startswith(long[:4096]) and len(bad.raw) < 5000 for bad in found.bad)


def test_ten_megabytes_without_a_space(tmp_path: Path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([good(1), b'{"text": "' + b"x" * 10_000_000 + b'"}', good(2)]))
    found = outcome((path,), tmp_path / "out")
    assert list(map(len, found.documents)) == [6, 10_000_000, 6]


def test_many_lines_of_one_character(tmp_path: Path):
    path = tmp_path / "in.txt"
    path.write_bytes(b"x\n" * 300_000)
    (manifest,) = preprocess(bytes_request((path,), tmp_path / "out", workers=2))
    assert (manifest.documents, manifest.tokens) == (300_000, 300_000)
    assert set((tmp_path / "out_text_document.bin").read_bytes()) == {ord("x"), 0}
    (tmp_path / "in.jsonl").write_bytes(good(1) + b"\n" + b"1\n" * 10_000)
    found = outcome((tmp_path / "in.jsonl",), tmp_path / "bad")
    assert found.manifest.quarantined_by_reason == {"not an object": 10_000}


@pytest.mark.parametrize("content", [b"", b'{"text": ""}\n', b'{"text": ""}\n{}\n', b"\n\n"])
def test_no_document_at_all(content: bytes, tmp_path: Path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"no document was found in {content.count(10)} records"):
        preprocess(bytes_request((path,), tmp_path / "out"))
    assert left_at(tmp_path / "out") <= {".quarantine.jsonl"}


# tokenizers -----------------------------------------------------------------------------------------------------


class WrongTokenizer(ByteTokenizer):
    """Gives one wrong id, or nothing, for the text "bad"."""

    def __init__(self, wrong: list[int], vocab_size: int = 257) -> None:
        super().__init__(vocab_size)
        self._wrong = wrong

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        rows = [self._wrong if text == "bad" else list(text.encode()) for text in texts]
        return batch_of_lists(rows)


@pytest.mark.parametrize(
    ("vocab_size", "wrong"),
    [(257, 257), (257, -1), (257, 65536 + 5), (65499, 65499), (65499, 65536), (65500, 65500), (65536, 65536)],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_id_outside_the_vocabulary_is_never_written(
    vocab_size: int, wrong: int, workers: int, tmp_path, monkeypatch
):
    use_tokenizer(monkeypatch, WrongTokenizer([1, wrong], vocab_size))
    (tmp_path / "in.jsonl").write_bytes(good(1) + b'\n{"text": "bad"}\n')
    with pytest.raises(TokenizerError, match=rf"ids from .*{wrong}.* ids 0 to {vocab_size - 1}"):
        preprocess(bytes_request((tmp_path / "in.jsonl",), tmp_path / "out", workers=workers))
    assert left_at(tmp_path / "out") == set()


def test_a_text_without_tokens_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use_tokenizer(monkeypatch, WrongTokenizer([]))
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "bad"}\n' + good(1) + b'\n{"text": "bad"}\n')
    found = outcome((tmp_path / "in.jsonl",), tmp_path / "out")
    assert found.documents == ["good 1"]
    assert found.manifest.records.empty == 2


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(65499, "uint16"), (65500, "int32"), (65535, "int32"), (65536, "int32"), (65537, "int32")],
)
def test_vocabularies_around_the_limits_of_16_bits(vocab_size: int, dtype: str, tmp_path: Path, monkeypatch):
    largest = vocab_size - 1
    use_tokenizer(monkeypatch, WrongTokenizer([0, largest - 1, largest], vocab_size))
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "bad"}\n')
    request = bytes_request((tmp_path / "in.jsonl",), tmp_path / "out", rows=RowSettings(append_eod=True))
    (manifest,) = preprocess(request)
    assert (manifest.dtype, manifest.largest_id) == (dtype, largest)
    assert IndexedDataset(tmp_path / "out_text_document")[0].tolist() == [0, largest - 1, largest, largest]


# sizes that no test can write -----------------------------------------------------------------------------------


class ManyBytes(bytes):
    """Bytes that say they are more than they are."""

    def __new__(cls, length: int) -> ManyBytes:
        return super().__new__(cls)

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def packed_as(monkeypatch: pytest.MonkeyPatch, lengths: list[int]) -> None:
    """Let packing tell of documents so long, and their bytes count without being written."""
    write = PendingFile.write

    def count(file: PendingFile, content: bytes) -> None:
        if isinstance(content, ManyBytes):
            file.size_bytes += len(content)
        else:
            write(file, content)

    packed = ManyBytes(2 * sum(lengths)), np.array(lengths, np.int64), 9
    monkeypatch.setattr("megatron_ext.data.rows.encoder.native.pack_tokens", lambda *_: packed)
    monkeypatch.setattr(PendingFile, "write", count)


def test_a_document_of_more_than_2_to_the_31_tokens_is_refused(tmp_path: Path, monkeypatch):
    packed_as(monkeypatch, [3, 2**31])
    (tmp_path / "in.jsonl").write_bytes(good(1) + b"\n" + good(2))
    with pytest.raises(DataError, match="2147483648 tokens cannot be stored"):
        preprocess(bytes_request((tmp_path / "in.jsonl",), tmp_path / "out"))
    assert left_at(tmp_path / "out") == set()


def test_more_than_2_to_the_32_tokens_are_counted_and_placed_exactly(tmp_path: Path, monkeypatch):
    lengths = [2**31 - 1, 2**31 - 2, 2**31 - 3, 7]
    packed_as(monkeypatch, lengths)
    monkeypatch.setattr("megatron_ext.data.store.indexed_writer._BLOCK", 3)
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(map(good, range(4))) + b"\n")
    (manifest,) = preprocess(bytes_request((tmp_path / "in.jsonl",), tmp_path / "out"))
    assert manifest.tokens == sum(lengths) > 2**32
    assert manifest.bin_file.size_bytes == 2 * sum(lengths)
    index = (tmp_path / "out_text_document.idx").read_bytes()[HEADER.size :]
    assert np.frombuffer(index[:16], "<i4").tolist() == lengths
    assert np.frombuffer(index[16:48], "<i8").tolist() == [2 * sum(lengths[:place]) for place in range(4)]
