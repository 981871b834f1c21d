"""Chat rows all the way, by the commands: tokens and mask, inspected, verified, packed, and trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QUESTIONS = ["What is two and two?", "天为什么是蓝色的？", "Name a river."]
ANSWERS = ["Four.", "因为空气散射蓝光。", "The Yellow River is one of them."]


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(QUESTIONS + ANSWERS, trainer)
    tokenizer.save(str(path))


def write_chats(path: Path) -> None:
    rows = []
    for number in range(60):
        turns = []
        for question, answer in zip(QUESTIONS[: 1 + number % 3], ANSWERS, strict=False):
            turns += [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
        rows.append({"conversations": turns})
    rows.append({"conversations": [{"from": "user", "value": "nobody answers"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run(*words: object) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, words)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_from_conversations_to_a_falling_loss_on_the_answers_alone(tmp_path: Path):
    write_tokenizer(tmp_path / "tokenizer.json")
    write_chats(tmp_path / "chats.jsonl")
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tmp_path / "tokenizer.json"]
    data, packed = tmp_path / "data", tmp_path / "packed"
    told = run(
        "tools/preprocess_data.py", "--input", tmp_path / "chats.jsonl", "--output-prefix", data, "--workers", "2",
        "--row-format", "conversations", "--chat-template", "chatml", "--append-eod", *tokenizer,
    )  # fmt: skip
    assert "1 bad conversation" in told

    shown = run("tools/inspect_dataset.py", f"{data}_text_document", "--documents", "0")
    assert f"<|im_start|>assistant\n[[{ANSWERS[0]}<|im_end|>" in shown
    assert f"[[{QUESTIONS[0]}" not in shown
    run("tools/verify_dataset.py", f"{data}_text_document")
    run(
        "tools/pack_dataset.py", "--method", "buckets", "--input", f"{data}_text_document",
        "--output-prefix", packed, "--bucket-sizes", "129",
    )  # fmt: skip

    run(
        "pretrain_gpt.py", "--config", "configs/models/tiny.yaml", *tokenizer, "--train-data-path", f"{packed}_129",
        "--dataset-packing", "documents", "--reset-attention-mask", "--seq-length", "128", "--micro-batch-size", "2",
        "--global-batch-size", "2", "--train-iters", "6", "--lr", "3e-3", "--lr-decay-style", "constant",
        "--log-interval", "1", "--eval-iters", "0", "--save", tmp_path / "run",
    )  # fmt: skip
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["lm_loss"] for line in lines]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.5
