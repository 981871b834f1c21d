"""A trained tokenizer is what was asked for, is the same every time, and has seen every line of the text."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
import sentencepiece
from pyarrow import parquet

from megatron_ext.data.sources.inputs import expand_inputs
from megatron_ext.errors import DataError, TokenizerError
from megatron_ext.tokenizer import training
from megatron_ext.tokenizer.build import build_tokenizer
from megatron_ext.tokenizer.presets import PRESETS, TrainingSettings
from megatron_ext.tokenizer.training import (
    TextCounts,
    TokenizerRequest,
    draw_lines,
    text_lines,
    train_tokenizer,
    verify,
)
from tests.unit.data.small import TEXTS, write_jsonl

SMALL = TrainingSettings(vocab_size=360)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "in.jsonl", [f"{text} {index}" for index in range(40) for text in TEXTS])


def train(corpus: Path, name: str, settings: TrainingSettings = SMALL, **values: object):
    request = TokenizerRequest((str(corpus),), str(corpus.parent / name), settings, **values)
    train_tokenizer(request)
    return sentencepiece.SentencePieceProcessor(model_file=str(corpus.parent / f"{name}.model"))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_equal_text_gives_equal_bytes_under_any_name(corpus: Path, model_type: str):
    settings = dataclasses.replace(SMALL, model_type=model_type, vocab_size=345)
    for name in ("a", "b"):
        train(corpus, name, settings, input_sentence_size=300)
    assert (corpus.parent / "a.model").read_bytes() == (corpus.parent / "b.model").read_bytes()
    assert (corpus.parent / "a.vocab").read_bytes() == (corpus.parent / "b.vocab").read_bytes()


@pytest.mark.parametrize("with_pad", [False, True])
def test_special_ids_are_fixed(corpus: Path, with_pad: bool):
    model = train(corpus, "tok", with_pad=with_pad)
    assert (model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (0, 1, 2, 3 if with_pad else -1)
    assert build_tokenizer("Llama2Tokenizer", corpus.parent / "tok.model").pad_id == (3 if with_pad else None)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_trained_and_passes_its_own_check(corpus: Path, name: str):
    settings = dataclasses.replace(PRESETS[name], vocab_size=420 if PRESETS[name].byte_fallback else 100)
    model = train(corpus, "tok", settings)
    assert model.get_piece_size() == settings.vocab_size


def test_switches_change_what_they_say(corpus: Path):
    def pieces(**values: object) -> list[str]:
        return train(corpus, "tok", dataclasses.replace(SMALL, **values), overwrite=True).encode(
            "a 12  b", out_type=str
        )

    assert pieces()[0] == "\u2581a"
    assert pieces(add_dummy_prefix=False)[0] == "a"
    assert "".join(pieces()).count("\u2581") == 4
    assert "".join(pieces(remove_extra_whitespaces=True)).count("\u2581") == 3
    assert pieces(user_defined_symbols=("12", "\n"))[1:3] == ["\u2581", "12"]


def test_digits_are_split_in_the_pieces(corpus: Path):
    def with_several_digits(split_digits: bool) -> int:
        settings = TrainingSettings(vocab_size=500, split_digits=split_digits)
        train(corpus, "tok", settings, overwrite=True)
        lines = (corpus.parent / "tok.vocab").read_text(encoding="utf-8").splitlines()
        words = [line.split("\t")[0] for line in lines if not line.startswith("<0x")]
        return sum(sum(c.isdigit() for c in word) > 1 for word in words)

    assert with_several_digits(True) == 0 < with_several_digits(False)


def test_byte_fallback_keeps_every_text(corpus: Path):
    model = train(corpus, "tok")
    for text in ("never seen: ぁ🜁", "\x00\x01", "tab\tand\nnewline"):
        assert model.decode(model.encode(text)) == text


def test_lines_the_trainer_would_leave_out_are_cut_instead(tmp_path: Path):
    long = "x" * 10_000
    texts = ["tab\there", "null\x00here", "mark\u2585here", "two\nlines\r\n", long, "words " * 2000, "", "\n"]
    counts = TextCounts()
    lines = list(text_lines(expand_inputs([str(write_jsonl(tmp_path / "in.jsonl", texts))]), ["text"], counts))
    assert not any(set(line) & set("\n\r\t\x00\u2585") for line in lines)
    assert max(map(len, lines)) <= 4096
    assert "".join(lines) == "tabherenullheremarkheretwolines" + long + "words " * 2000
    assert (counts.read, counts.used, counts.bad, counts.empty) == (8, 6, 0, 2)
    assert counts.characters == sum(map(len, lines))


def test_plain_text_and_packed_json_are_told_apart_by_their_names(tmp_path: Path):
    (tmp_path / "plain.txt").write_bytes(b'{"text": "not parsed"}\n\xff\n\n')
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(b'{"text": "parsed"}\n{\n'))
    counts = TextCounts()
    files = expand_inputs([str(tmp_path / "plain.txt"), str(tmp_path / "packed.jsonl.gz")])
    assert list(text_lines(files, ["text"], counts)) == ['{"text": "not parsed"}', "parsed"]
    assert counts.reasons == {"invalid UTF-8": 1, "broken JSON": 1}
    assert counts.read == counts.used + counts.bad + counts.empty == 5
    assert counts.empty == 1


@pytest.mark.parametrize("form", ["in.jsonl", "in.json", "in.parquet", "in.txt", "unknown.suffix"])
def test_the_same_text_in_any_format_trains_the_same_model(corpus: Path, form: str):
    texts = [json.loads(line)["text"].replace("\n", " ") for line in corpus.read_text(encoding="utf-8").splitlines()]
    path = write_jsonl(corpus.parent / form, texts)
    if form == "in.json":
        path.write_text(json.dumps([{"text": text} for text in texts], indent=1), encoding="utf-8")
    elif form == "in.parquet":
        parquet.write_table(pyarrow.table({"text": texts, "unused": range(len(texts))}), path)
    elif path.suffix not in (".json", ".jsonl"):
        path.write_text("\n".join(texts), encoding="utf-8")
    train(path, "tok", input_format="text" if form == "unknown.suffix" else "auto")
    train(write_jsonl(corpus.parent / "reference.jsonl", texts), "reference")
    assert (corpus.parent / "tok.model").read_bytes() == (corpus.parent / "reference.model").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dataclasses.replace(SMALL, vocab_size=270), "--vocab-size 270.*larger --vocab-size"),
        (dataclasses.replace(SMALL, vocab_size=10**6), "--vocab-size 1000000.*smaller --vocab-size"),
    ],
)
def test_sizes_that_the_text_does_not_support_are_refused(corpus: Path, settings: TrainingSettings, message: str):
    with pytest.raises(TokenizerError, match=message):
        train(corpus, "tok", settings)
    assert [path.name for path in corpus.parent.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("count", [1, 10, 99, 100, 1000])
def test_lines_are_drawn_without_repetition_in_order_and_evenly(count: int):
    lines = [f"{index:03}" for index in range(100)]
    drawn = list(draw_lines(lines, count, 7))
    assert len(drawn) == min(count, 100)
    assert drawn == sorted(set(drawn)) == list(draw_lines(lines, count, 7))
    often = Counter(line for seed in range(300) for line in draw_lines(lines, count, seed))
    expected = 300 * min(count, 100) / 100
    assert all(abs(often[line] - expected) <= 6 * expected**0.5 for line in lines)


def test_no_text_is_refused_with_the_counts(corpus: Path):
    with pytest.raises(TokenizerError, match=r"no text.*280 bad"):
        train(corpus, "tok", json_keys=("other",))


def test_existing_outputs_are_kept_unless_told_otherwise(corpus: Path):
    (corpus.parent / "tok.model").write_text("old")
    with pytest.raises(TokenizerError, match="--overwrite"):
        train(corpus, "tok")
    assert (corpus.parent / "tok.model").read_text() == "old"
    train(corpus, "tok", overwrite=True)


def test_missing_input_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        train(tmp_path / "nowhere.jsonl", "tok")


def test_a_setting_that_took_no_effect_is_found(corpus: Path):
    train(corpus, "tok")
    content = (corpus.parent / "tok.model").read_bytes()
    for field, value in (
        ("split_digits", False),
        ("vocab_size", 361),
        ("normalization", "nfkc"),
        ("model_type", "unigram"),
    ):
        asked = dataclasses.replace(SMALL, **{field: value})
        with pytest.raises(TokenizerError, match="not what was asked for"):
            verify(content, TokenizerRequest((), "", asked))
    verify(content, TokenizerRequest((), "", SMALL))
    assert training.UNK_ID == 0
