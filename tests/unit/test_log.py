"""Lines come from rank 0, at once, on the stream where people look; a repeated warning is written once."""

from __future__ import annotations

import pytest

from megatron_ext import log


@pytest.mark.parametrize(("rank", "told"), [(None, True), ("0", True), ("1", False)])
def test_only_rank_0_writes_and_each_to_its_stream(rank, told, monkeypatch, capsys):
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    log.info("a line")
    log.warn("a doubt")
    captured = capsys.readouterr()
    assert captured.out == ("a line\n" if told else "")
    assert captured.err == ("warning: a doubt\n" if told else "")


def test_the_last_stage_may_write_from_any_rank(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "5")
    log.info_any_rank("loss 3.2")
    assert capsys.readouterr().out == "loss 3.2\n"


def test_the_same_warning_is_written_once(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    for _ in range(3):
        log.warn_once("only once, said by test_log")
    log.warn_once("another, said by test_log")
    assert capsys.readouterr().err.count("warning:") == 2
