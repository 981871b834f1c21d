"""The command writes what its passes compute, shows what scores mean, and refuses what it cannot score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ext.data.curriculum.score_file import ScoreFile, score_names
from megatron_ext.data.curriculum.text_scores import readability
from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError, TokenizerError
from tests.unit.data.small import make_dataset, train_sentence_piece
from tools import score_difficulty

TEXTS = [
    "The cat sat. It slept.",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "Extraordinarily complicated sentences, characteristically overburdened, discourage inexperienced readers",
    "日月盈昃，辰宿列张。饕餮魑魅。",
    "a a a a a a a a a a a a a a a a",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"text": text, "level": i * 1.5} for i, text in enumerate(TEXTS)]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = str(train_sentence_piece(folder / "small.model"))
    rows_settings = RowSettings(append_eod=True)
    preprocess(
        PreprocessRequest((str(folder / "c.jsonl"),), str(folder / "c"), "Llama2Tokenizer", model, rows=rows_settings)
    )
    return folder


@pytest.fixture
def prefix(corpus: Path, tmp_path: Path) -> str:
    for path in corpus.glob("c_text_document.*"):
        shutil.copy(path, tmp_path)
    return str(tmp_path / "c_text_document")


def output(capsys, prefix: str, *words: object) -> str:
    score_difficulty.main(["--input", prefix, "--metric", *map(str, words)])
    return capsys.readouterr().out


def test_metrics_of_all_kinds_in_one_run(prefix: str, tmp_path: Path, capsys):
    names = ("readability", "length", "bigram", "field:level", "compression", "diversity", "rarity", "unigram")
    out = output(capsys, f"{prefix}.idx", *names, "--plot", tmp_path / "x.png", "--examples", 1)
    assert score_names(prefix) == sorted(name.replace(":", "-") for name in names)
    assert ScoreFile(prefix, "readability").values == pytest.approx([readability(text) for text in TEXTS])
    assert ScoreFile(prefix, "field-level").values.tolist() == [0, 1.5, 3, 4.5, 6]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert f"--- readability: hardest\n{readability(TEXTS[2]):12,.4f}  document 2: Extraordinarily" in out
    assert "--- field-level: median\n" in out and "p90" in out and "scores of 5 documents" in out


def test_a_model_scores_too(prefix: str, tmp_path: Path, capsys):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1000, max_position_embeddings=64, **sizes))
    model.save_pretrained(tmp_path / "model")
    assert "--- model: hardest" in output(capsys, prefix, "model", "--model", tmp_path / "model")
    assert ScoreFile(prefix, "model").values == pytest.approx([np.log(1000)] * 5, rel=0.05)  # untrained: all alike


def test_a_second_run_needs_a_word(prefix: str, capsys):
    output(capsys, prefix, "length")
    with pytest.raises(DataError, match="exists already"):
        output(capsys, prefix, "length")
    assert "complete already" in output(capsys, prefix, "length", "--resume")
    output(capsys, prefix, "length", "--overwrite", "--workers", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lenght"], r"lenght is unknown.*nearest is length"),
        (["length", "length"], "given twice"),
        (["field:a/b"], "cannot name scores"),
        (["model"], "belong together"),
        (["length", "--workers", "0"], "at least 1"),
        (["length", "--resume", "--overwrite"], "Give one of them"),
        (["field:absent"], "record 1 of .* has no field 'absent'"),
        (["field:level", "--input-rows", "absent.jsonl"], "absent.jsonl"),
        (["length", "--plot", "absent/x.png"], "cannot be written"),
    ],
)
def test_mistakes_are_refused(words: list[str], message: str, prefix: str, capsys):
    with pytest.raises(DataError, match=message):
        output(capsys, prefix, *words)


def test_datasets_that_cannot_be_scored_are_refused(tmp_path: Path, capsys):
    with pytest.raises(DataError, match="cannot be read"):
        output(capsys, str(tmp_path / "absent"), "length")
    write_indexed(tmp_path / "empty", [], np.uint16)
    with pytest.raises(DataError, match="no documents to score"):
        output(capsys, str(tmp_path / "empty"), "length")
    bare = make_dataset(tmp_path, "bare")
    with pytest.raises(TokenizerError, match="no manifest"):
        output(capsys, bare, "length", "readability")
    with pytest.raises(DataError, match="no manifest"):
        output(capsys, bare, "field:x")
    assert score_names(bare) == []
    assert "token ids only" in output(capsys, bare, "length")
    words = ("readability", "--tokenizer-type", "NullTokenizer", "--vocab-size", 1000)
    assert "--- readability: easiest" in output(capsys, bare, *words)
