"""Small real datasets of text to score, made by preprocessing itself, and runs that die on the way."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from megatron_ext.data.curriculum import score_run
from tests.unit.data.preprocessed import bytes_request, preprocess
from tests.unit.data.small import write_jsonl

CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。寒来暑往，秋收冬藏。"
ENGLISH = "The quick brown fox jumps over the lazy dog. It rained. Mathematics fascinated everybody there."


def some_texts(count: int = 60, seed: int = 0) -> list[str]:
    """Texts in Chinese, English and both, all different."""
    dice = random.Random(seed)
    return [
        " ".join(dice.choices(ENGLISH.split(), k=dice.randint(1, 60)))
        + "".join(dice.choices(CHINESE, k=dice.randint(0, 80)))
        for _ in range(count)
    ]


def text_dataset(folder: Path, texts: list[str], name: str = "corpus") -> str:
    """A dataset of bytes (see `use_tokenizer`), each document with its end; its prefix."""
    source = write_jsonl(folder / f"{name}.jsonl", texts)
    return preprocess_bytes(source, folder / name)


def preprocess_bytes(source: Path, prefix: Path, **values: object) -> str:
    from megatron_ext.data.rows.settings import RowSettings

    preprocess(bytes_request((source,), prefix, **{"rows": RowSettings(append_eod=True), **values}))
    return f"{prefix}_text_document"


def dies_by_sigkill(action: Callable[[], object]) -> bool:
    """Whether a child process that does this is ended by SIGKILL."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def kill_after(monkeypatch, commits: int) -> None:
    """Let a run kill itself right after so many entries of its journal."""
    append = score_run.Journal.append
    left = [commits]

    def appended(journal, entry) -> None:
        append(journal, entry)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(score_run.Journal, "append", appended)
