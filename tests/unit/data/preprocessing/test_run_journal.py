"""Killed after any block and resumed equals never killed, byte for byte; other work is never taken up (L2, L7)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_ext.data.preprocessing import preprocess as module
from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.preprocessing.run_journal import RunJournal
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.errors import DataError
from tests.unit.data.small import write_jsonl


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = read_blocks.__defaults__
    assert defaults is not None
    monkeypatch.setattr(read_blocks, "__defaults__", (*defaults[:2], 20, *defaults[3:]))


def request_for(folder: Path, **values: object) -> PreprocessRequest:
    inputs = [folder / "a.jsonl", folder / "b.json", folder / "c.txt"]
    if not inputs[0].exists():
        write_jsonl(inputs[0], [f"{i} 1" for i in range(6)])
        inputs[0].write_bytes(inputs[0].read_bytes() + b'{"text": 3}\n\n')
        inputs[1].write_text(json.dumps([{"text": f"{i} 2"} for i in range(6)]))
        inputs[2].write_text("".join(f"{i} 3\n" for i in range(6)))
    defaults = {"vocab_size": 9, "rows": RowSettings(append_eod=True), "commit_seconds": 0.0}
    return PreprocessRequest(
        tuple(map(str, inputs)), str(folder / "out" / "x"), "NullTokenizer", **{**defaults, **values}
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_after(commits: int, request: PreprocessRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run until so many commits; whether it was killed. The journal stays as the kill leaves it."""
    original, left = RunJournal.commit, [commits]

    def commit(journal: RunJournal, state: object) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        original(journal, state)

    with monkeypatch.context() as patched:
        patched.setattr(RunJournal, "commit", commit)
        try:
            preprocess(request)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_after_any_block_and_resumed_equals_never_killed(workers: int, tmp_path: Path, monkeypatch):
    preprocess(request_for(tmp_path))
    whole = content(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    request = request_for(tmp_path, workers=workers, resume=True)
    kills = 0
    while killed_after(kills, request, monkeypatch):
        if kills % 3 == 0:
            killed_after(1, request, monkeypatch)  # and once more, a block later
        kills += 1
        preprocess(request)
        assert content(tmp_path / "out") == whole
        for path in (tmp_path / "out").iterdir():
            path.unlink()
    assert kills > 6


def test_a_finished_run_is_not_done_again(tmp_path: Path, monkeypatch, capsys):
    request = request_for(tmp_path, resume=True)
    manifests = preprocess(request)
    monkeypatch.setattr(module, "read_blocks", None)
    assert preprocess(request) == manifests
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rows": RowSettings(append_eod=False)}, "rows"),
        ({"vocab_size": 10}, "tokenizer"),
        ({"inputs": "fewer"}, "inputs"),
    ],
)
def test_another_runs_work_is_not_taken_up(changed: dict, named: str, tmp_path: Path, monkeypatch):
    request = request_for(tmp_path)
    assert killed_after(2, request, monkeypatch)
    if changed == {"inputs": "fewer"}:
        changed = {"inputs": request.inputs[:2]}
    with pytest.raises(DataError, match=f"another run: {named}"):
        preprocess(dataclasses.replace(request, resume=True, **changed))


def test_a_changed_input_is_noticed(tmp_path: Path, monkeypatch):
    request = request_for(tmp_path)
    assert killed_after(2, request, monkeypatch)
    Path(request.inputs[2]).write_text("8 8\n")
    with pytest.raises(DataError, match="another run: inputs"):
        preprocess(dataclasses.replace(request, resume=True))


def test_unfinished_work_is_lost_only_when_told(tmp_path: Path, monkeypatch):
    request = request_for(tmp_path)
    assert killed_after(2, request, monkeypatch)
    with pytest.raises(DataError, match="unfinished work"):
        preprocess(request)
    assert preprocess(dataclasses.replace(request, overwrite=True))[0].documents == 18


def test_a_run_that_committed_nothing_leaves_nothing(tmp_path: Path, monkeypatch):
    assert killed_after(0, request_for(tmp_path), monkeypatch)
    assert content(tmp_path / "out") == {}


def test_partial_files_that_lost_bytes_are_refused(tmp_path: Path, monkeypatch):
    request = request_for(tmp_path)
    assert killed_after(3, request, monkeypatch)
    path = tmp_path / "out" / "x_text_document.bin.partial"
    path.write_bytes(path.read_bytes()[:3])
    with pytest.raises(DataError, match=r"bin\.partial has 3 bytes"):
        preprocess(dataclasses.replace(request, resume=True))
