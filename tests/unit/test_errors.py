"""A user's mistake is one paragraph and status 1 everywhere, told by rank 0 first; a bug keeps its traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megatron_ext import errors


def run(main, monkeypatch: pytest.MonkeyPatch, rank: str | None = None) -> int:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        errors.run_command(main)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def mistake(_argv: list[str]) -> int:
    raise errors.DataError("--data-path x has no .idx file", "each prefix needs .bin and .idx", "Run the tool again!")


def test_the_three_parts_become_one_paragraph():
    text = str(errors.ConfigError("a is 3", "a must be even ", "set a to 4."))
    assert text == "a is 3. a must be even. set a to 4."
    assert str(errors.ConfigError("only this")) == "only this."


@pytest.mark.parametrize(("rank", "waits"), [(None, False), ("0", False), ("3", True)])
def test_a_mistake_is_one_line_and_rank_0_comes_first(rank, waits, monkeypatch, capsys):
    """The others wait before they tell: torchrun ends them in that time when rank 0 has failed as well."""
    pauses = []
    monkeypatch.setattr(errors.time, "sleep", lambda seconds: pauses.append((seconds, capsys.readouterr().err)))
    assert run(mistake, monkeypatch, rank) == 1
    assert pauses == ([(errors.SECONDS_FOR_RANK_0, "")] if waits else [])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and "no .idx file" in captured.err


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (7, 7)])
def test_the_status_of_the_command_is_the_status_of_the_process(returned, status, monkeypatch):
    assert run(lambda _argv: returned, monkeypatch) == status


def test_a_keyboard_interrupt_is_130(monkeypatch):
    def interrupted(_argv):
        raise KeyboardInterrupt

    assert run(interrupted, monkeypatch) == 130


def test_a_reader_that_has_seen_enough_is_no_failure():
    program = "from megatron_ext.errors import run_command; run_command(lambda _: print('line\\n' * 100_000))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


def test_a_bug_is_not_swallowed():
    def bug(_argv):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        errors.run_command(bug)


def test_every_kind_of_mistake_is_caught_as_one():
    kinds = (
        errors.ConfigError,
        errors.DataError,
        errors.TokenizerError,
        errors.CheckpointError,
        errors.ConversionError,
    )
    assert all(issubclass(kind, errors.MegatronExtError) for kind in kinds)
