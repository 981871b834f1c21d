"""Exported tokenizers give the training ids, for real text of several scripts, and the export says so when not."""

from __future__ import annotations

import inspect
import io
import json
import random
import re
import textwrap

import pytest
import sentencepiece
import tokenizers

from checkpoint_convert import sentencepiece_json
from checkpoint_convert.tokenizer_files import SAMPLES, check_ids, training_tokenizer, write_tokenizer
from megatron_ext.errors import ConversionError
from megatron_ext.tokenizer import build_tokenizer

CHINESE = "中文是世界上使用人数最多的语言之一。他每天早上七点起床，然后去图书馆学习。今天天气很好，我们一起去散步吧！"
LINES = [
    line
    for module in (inspect, random, textwrap, io, json)
    for line in inspect.getsource(module).splitlines()
    if line.strip()
] + [CHINESE[i : i + 20] for i in range(len(CHINESE) - 20)] * 5

KINDS = {
    "demo": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", split_digits=True,
                 remove_extra_whitespaces=False, allow_whitespace_only_pieces=True),
    "symbols": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", pad_id=3,
                    remove_extra_whitespaces=False, user_defined_symbols=["<eod>", "<|im_start|>", "▁▁▁▁", "▁▁"]),
    "no_prefix": dict(model_type="bpe", byte_fallback=True, add_dummy_prefix=False),
    "library_defaults_bpe": dict(model_type="bpe"),
    "nfkc": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="nfkc"),
    "unigram": dict(model_type="unigram", byte_fallback=True),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def model_file(request, tmp_path_factory):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, vocab_size=700, hard_vocab_limit=False, minloglevel=2,
        num_threads=1, character_coverage=0.995, **KINDS[request.param],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tokenizer") / f"{request.param}.model"
    path.write_bytes(out.getvalue())
    return path


def random_texts(count: int, alphabet: str) -> list[str]:
    draw = random.Random(7)
    return ["".join(draw.choice(alphabet) for _ in range(draw.randint(0, 30))) for _ in range(count)]


ODD = " \t\n   aabbee.,!?0123456789-='\"()中文的一是了😀é\u3000ﬁ①\u200bⅧｱ\u00a0한"


@pytest.mark.parametrize("tokenizer_type", ["SentencePieceTokenizer", "Llama2Tokenizer"])
def test_every_text_gets_the_training_ids_and_comes_back(model_file, tmp_path, tokenizer_type):
    tokenizer = build_tokenizer(tokenizer_type, model_file)
    write_tokenizer(tmp_path, tokenizer, 64)
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [*LINES[::7], *(text for text in SAMPLES if text.strip())]
    if model_file.stem == "unigram":  # equal sums of scores: see sentencepiece_json
        texts = [text for text in texts if not re.search(r"(.)\1{4}", text)]
    else:
        texts += random_texts(3000, ODD)
        if model_file.stem == "symbols":
            texts += [f"x<eod>{text}<|im_start|> y    z" for text in LINES[::31]]
    for text in texts:
        ids = tokenizer.encode(text)
        if not ids and tokenizer_type == "Llama2Tokenizer":  # SentencePiece begins no empty text with bos
            ids = [tokenizer.bos_id]
        assert fast.encode(text).ids == ids, text
        if 0 not in ids:  # <unk> has no text of its own
            assert fast.decode(ids) == tokenizer.decode(ids), text


def test_the_files_name_the_special_tokens_and_a_class_of_both_generations(model_file, tmp_path):
    tokenizer = build_tokenizer("SentencePieceTokenizer", model_file)
    write_tokenizer(tmp_path, tokenizer, 64)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    special = json.loads((tmp_path / "special_tokens_map.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_max_length"] == 64
    eos = {"symbols": "<eod>"}.get(model_file.stem, "</s>")
    assert special | {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": eos} == special
    assert special.items() <= settings.items()
    assert ("pad_token" in special) == (model_file.stem == "symbols")
    assert (tmp_path / "tokenizer.model").read_bytes() == model_file.read_bytes()


@pytest.mark.parametrize("damage", ["merges", "normalizer"])
def test_an_export_whose_ids_differ_is_refused_with_the_text(model_file, tmp_path, damage):
    tokenizer = build_tokenizer("SentencePieceTokenizer", model_file)
    write_tokenizer(tmp_path, tokenizer, 64)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    if damage == "merges" and content["model"]["type"] == "BPE":
        content["model"]["merges"] = []
    else:
        content["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ConversionError, match="the training tokenizer gives"):
        check_ids(tmp_path / "tokenizer.json", tokenizer)


def test_other_kinds_of_sentencepiece_models_are_refused(tmp_path):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=out, vocab_size=100, model_type="char", minloglevel=2
    )
    path = tmp_path / "char.model"
    path.write_bytes(out.getvalue())
    with pytest.raises(ConversionError, match="only BPE and unigram"):
        sentencepiece_json.read_model(path)
    path.write_bytes(b"\xff\xff\xff")
    with pytest.raises(ConversionError, match="no SentencePiece model"):
        sentencepiece_json.read_model(path)


@pytest.fixture
def fast_folder(tmp_path):
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<pad>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    fast.train_from_iterator(LINES, trainer)
    folder = tmp_path / "training"
    folder.mkdir()
    fast.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "pad_token": "<pad>", "chat_template": "{{ messages }}", "is_local": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "TokenizersBackend"}))
    return folder


def test_a_tokenizer_json_is_copied_with_settings_that_both_generations_read(fast_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(out, build_tokenizer("HuggingFaceTokenizer", fast_folder), 64)
    assert (out / "tokenizer.json").read_bytes() == (fast_folder / "tokenizer.json").read_bytes()
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<pad>",
        "chat_template": "{{ messages }}",
    }
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"


def test_the_checkpoints_tokenizer_must_be_there_and_fit_the_model(fast_folder):
    assert training_tokenizer("NullTokenizer", [], 100) is None
    assert training_tokenizer(None, [], 100) is None
    with pytest.raises(ConversionError, match="holds no tokenizer file"):
        training_tokenizer("HuggingFaceTokenizer", [], 100)
    files = [fast_folder / "tokenizer.json"]
    size = build_tokenizer("HuggingFaceTokenizer", files[0]).vocab_size
    assert training_tokenizer("HuggingFaceTokenizer", files, size).vocab_size == size
    with pytest.raises(ConversionError, match=f"defines {size} ids, the model was trained with {size + 1}"):
        training_tokenizer("HuggingFaceTokenizer", files, size + 1)
