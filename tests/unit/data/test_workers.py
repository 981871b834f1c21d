"""Workers change nothing but the time; a dead one ends the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from megatron_ext.data import workers
from megatron_ext.data.encode import EncodeSettings, encode_in_worker
from megatron_ext.data.readers import LineBlock
from megatron_ext.data.workers import encode_blocks
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.null import NullTokenizer

TOKENIZER = NullTokenizer(100)
SETTINGS = EncodeSettings(("text",), False, "uint16", "NullTokenizer", None, 100, TOKENIZER.fingerprint)


def blocks(count: int) -> Iterator[LineBlock]:
    for index in range(count):
        lines = b"".join(b'{"text": "%d"}\n' % ((index + line) % 100) for line in range(index % 7 + 1))
        yield LineBlock(0, 1, lines, index % 7 + 1)


def die_on_the_tenth(block: LineBlock) -> object:
    if block.content == list(blocks(11))[10].content:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_in_worker(block)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_results_come_in_the_order_of_the_blocks(num_workers: int):
    alone = [block.documents[0].token_bytes for block in encode_blocks(blocks(40), SETTINGS, TOKENIZER, 1)]
    together = [block.documents[0].token_bytes for block in encode_blocks(blocks(40), SETTINGS, TOKENIZER, num_workers)]
    assert together == alone


def test_a_killed_worker_ends_the_run_with_one_paragraph(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "encode_in_worker", die_on_the_tenth)
    with pytest.raises(DataError, match="a worker process died"):
        list(encode_blocks(blocks(40), SETTINGS, TOKENIZER, 2))


def test_an_error_while_reading_ends_the_workers():
    def failing() -> Iterator[LineBlock]:
        yield from blocks(3)
        raise DataError("the disk fails")

    with pytest.raises(DataError, match="the disk fails"):
        list(encode_blocks(failing(), SETTINGS, TOKENIZER, 2))
