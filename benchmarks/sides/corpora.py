"""Corpora and tokenizers of the preprocessing benchmarks, made here from real text that is installed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "demo_corpus.py"


def documents(folder: Path, max_mb: float, chinese: bool) -> list[str]:
    """Docstrings of the installed packages and perhaps the demo corpus's Chinese, at most so much of each."""
    command = [sys.executable, str(TOOL), "--out", str(folder), "--max-mb", str(max_mb)]
    subprocess.run(command + ([] if chinese else ["--no-chinese"]), check=True, capture_output=True)
    with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def write_corpus(texts: list[str], path: Path, size_mb: float) -> None:
    """JSON lines of about this size: the documents as often as it takes, each time in another order."""
    shuffle, written = random.Random(0), 0
    with path.open("wb") as stream:
        while written < size_mb * 1e6:
            shuffle.shuffle(texts)
            for text in texts:
                line = json.dumps({"text": text}, ensure_ascii=False).encode("utf-8") + b"\n"
                written += stream.write(line)
                if written >= size_mb * 1e6:
                    return


def train_sentence_piece(texts: list[str], path: Path, vocab_size: int) -> None:
    """A SentencePiece BPE model with byte fallback and without normalisation."""
    import sentencepiece

    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=stream,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            input_sentence_size=200_000,
            minloglevel=2,
        )


def train_byte_level(texts: list[str], path: Path, vocab_size: int) -> None:
    """A byte-level BPE tokenizer.json with GPT-2's splitting of words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def _lines(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield from (line for line in text.split("\n") if line)
