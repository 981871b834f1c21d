"""An engine that gives other ids than the library on the real input is refused before any work (law L4)."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_ext.data.preprocessing import input_sample
from megatron_ext.data.preprocessing.input_sample import check_on_files, sample_texts
from megatron_ext.data.preprocessing.preprocess import preprocess
from megatron_ext.data.rows.forms import make_row_form
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.inputs import expand_inputs
from megatron_ext.data.sources.pieces import ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.errors import DataError, TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch
from tests.unit.data.byte_tokenizer import ByteTokenizer, documents_of, use_tokenizer
from tests.unit.data.preprocessed import bytes_request, left_at

TEXT_FORM = make_row_form(RowSettings())


class FastEngine(ByteTokenizer):
    """A native engine that is wrong about one letter; remembers what it was compared on and what it was used on."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = "native"
        self.compared: list[str] = []
        self.used: list[str] = []

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        self.used += texts
        batch = super().encode_batch([text.replace("ß", "s") for text in texts])
        return batch

    def encode_reference_batch(self, texts: Sequence[str]) -> EncodedBatch:
        self.compared += texts
        return super().encode_batch(texts)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FastEngine:
    engine = FastEngine()
    use_tokenizer(monkeypatch, engine)
    return engine


def write(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def refused(inputs: Sequence[Path | str], prefix: Path, **values: object) -> None:
    with pytest.raises(TokenizerError, match="native tokenizer engine gives other ids than the library for 'straße'"):
        preprocess(bytes_request(tuple(inputs), prefix, **values))
    assert left_at(prefix) == set()


def test_a_wrong_engine_is_refused_before_anything_is_opened(engine: FastEngine, tmp_path: Path):
    path = write(tmp_path / "in.jsonl", ["good", "straße", "good"])
    refused([path], tmp_path / "folder" / "out")
    assert not (tmp_path / "folder").exists()
    assert engine.used == engine.compared == ["good", "straße", "good"]


def test_the_reference_engine_is_not_compared_with_itself(engine: FastEngine, tmp_path: Path):
    engine.engine = "reference"
    preprocess(bytes_request((write(tmp_path / "in.jsonl", ["straße"]),), tmp_path / "out"))
    assert engine.compared == []


@pytest.mark.parametrize("place", [0, 8])
def test_the_first_and_the_last_of_many_files_are_looked_into(place: int, engine: FastEngine, tmp_path: Path):
    paths = [write(tmp_path / f"{number}.jsonl", [f"file {number}"]) for number in range(9)]
    write(paths[place], ["straße"])
    refused([tmp_path], tmp_path / "out")


def test_four_of_many_files_are_looked_into(engine: FastEngine, tmp_path: Path):
    for number in range(100):
        write(tmp_path / f"{number:03d}.jsonl", [f"file {number}"])
    check_on_files(expand_inputs([str(tmp_path)]), TEXT_FORM, engine)
    assert engine.compared == ["file 0", "file 33", "file 66", "file 99"]


def test_bad_records_do_not_stand_in_the_way(engine: FastEngine, tmp_path: Path):
    path = write(tmp_path / "in.jsonl", ["straße"])
    path.write_bytes(b'{\n\n{"text": 3}\n\xff\n' + path.read_bytes())
    refused([path], tmp_path / "out")
    assert engine.compared == ["straße"]


@pytest.mark.parametrize("content", [b"", b"{", b"\n", b"{}\n"])
def test_a_file_without_a_text_is_no_reason_to_refuse(content: bytes, engine: FastEngine, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(content)
    write(tmp_path / "b.jsonl", ["good"])
    preprocess(bytes_request((tmp_path,), tmp_path / "out"))
    assert documents_of(tmp_path / "out_text_document") == ["good"]


def test_a_damaged_file_is_told_of_as_such(engine: FastEngine, tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is damaged after record 0"):
        preprocess(bytes_request((tmp_path / "a.jsonl.gz",), tmp_path / "out"))


def test_only_the_beginning_of_a_large_file_is_compared(engine: FastEngine, tmp_path: Path):
    path = write(tmp_path / "in.jsonl", ["x" * 1000] * 2000)
    check_on_files(expand_inputs([str(path)]), TEXT_FORM, engine)
    assert input_sample._CHARACTERS <= sum(map(len, engine.compared)) < input_sample._CHARACTERS + 1000
    engine.compared.clear()
    write(path, ["x" * 5_000_000])
    check_on_files(expand_inputs([str(path)]), TEXT_FORM, engine)
    assert sum(map(len, engine.compared)) == input_sample._CHARACTERS


def test_the_sample_is_what_the_tokenizer_will_get(tmp_path: Path):
    """Of rows with several texts, the texts of all of them, and no special tokens."""
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"context": "c d", "completion": "e"}) + "\n")
    (block,) = read_blocks(expand_inputs([str(path)]), ReadProgress())
    texts = sample_texts(block, make_row_form(RowSettings(row_format="completion", append_eod=True)))
    assert "".join(texts).startswith("c d")
    assert "".join(texts).endswith("e")


# inputs that can be read once -----------------------------------------------------------------------------------


def pipe(path: Path, content: bytes) -> threading.Thread:
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    return writer


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_engine_is_refused_at_the_first_block_of_a_pipe(workers: int, engine: FastEngine, tmp_path: Path):
    writer = pipe(tmp_path / "in.jsonl", write(tmp_path / "x", ["good", "straße"]).read_bytes())
    refused([tmp_path / "in.jsonl"], tmp_path / "out", workers=workers)
    writer.join()


def test_nothing_of_a_pipe_is_lost_to_the_comparison(engine: FastEngine, tmp_path: Path):
    writer = pipe(tmp_path / "in.jsonl", write(tmp_path / "x", ["one", "two"]).read_bytes())
    preprocess(bytes_request((tmp_path / "in.jsonl",), tmp_path / "out"))
    writer.join()
    assert documents_of(tmp_path / "out_text_document") == engine.compared == ["one", "two"]


def test_the_comparison_waits_for_the_first_text(engine: FastEngine, tmp_path: Path, monkeypatch):
    defaults = read_blocks.__defaults__
    assert defaults is not None
    monkeypatch.setattr(read_blocks, "__defaults__", (*defaults[:2], 20, *defaults[3:]))
    content = b"{}\n" * 30 + write(tmp_path / "x", ["straße"]).read_bytes()
    writer = pipe(tmp_path / "in.jsonl", content)
    refused([tmp_path / "in.jsonl"], tmp_path / "out")
    writer.join()
    (tmp_path / "file.jsonl").write_bytes(content)
    refused([tmp_path / "file.jsonl"], tmp_path / "out")


def test_a_pipe_beside_files_is_compared_too(engine: FastEngine, tmp_path: Path):
    writer = pipe(tmp_path / "in.jsonl", write(tmp_path / "x", ["straße"]).read_bytes())
    refused([write(tmp_path / "a.jsonl", ["good"]), tmp_path / "in.jsonl"], tmp_path / "out")
    writer.join()


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("megatron_ext.data.sources.pieces.open_raw", lambda _: io.BytesIO(content))


def test_a_wrong_engine_is_refused_for_standard_input(engine: FastEngine, tmp_path: Path, monkeypatch):
    standard_input(monkeypatch, b'{"text": "good"}\n{"text": "stra\xc3\x9fe"}\n')
    refused(["-"], tmp_path / "out")


def test_standard_input_is_read_whole(engine: FastEngine, tmp_path: Path, monkeypatch):
    standard_input(monkeypatch, b'{"text": "one"}\n{}\n{"text": "two"}')
    preprocess(bytes_request(("-",), tmp_path / "out"))
    assert documents_of(tmp_path / "out_text_document") == ["one", "two"]
    assert engine.compared == ["one"]  # the last line, which has no end, is a block of its own
