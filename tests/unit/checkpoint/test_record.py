"""state.json: exact floats, an unknown format refused, nothing in it that breaks later code."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.checkpoint.record import RECORD, CheckpointRecord, read_record, write_record
from megatron_ext.errors import CheckpointError
from tests.unit.tiny import tiny_run

COUNTERS = {"iteration": 3, "consumed_samples": 12, "consumed_tokens": 192}
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def example() -> CheckpointRecord:
    return CheckpointRecord(
        run=tiny_run(), vocab_size=100, state=dict(COUNTERS), schedule={"max_lr": 0.1}, optimizer_step=3,
        loss_scaler={"scale": 65536.0}, data={"tokens": 5}, sources={"decisions": []},
        tokenizer_files=["tokenizer.model"],
        provenance={"software": "a test"},
    )  # fmt: skip


def test_reads_back_what_was_written(tmp_path: Path):
    for record in (example(), CheckpointRecord(run=tiny_run(), vocab_size=1, state=dict(COUNTERS))):
        write_record(tmp_path, record)
        assert read_record(tmp_path) == record
    assert read_record(tmp_path).iteration == 3


@settings(deadline=None)
@given(FLOATS, FLOATS, st.floats(min_value=1e-30, max_value=0.999), st.integers(0, 2**63))
def test_every_number_reads_back_bit_for_bit(rate: float, scale: float, lr: float, samples: int):
    run = tiny_run().with_values(lr=lr, adam_beta2=lr)
    state = {**COUNTERS, "consumed_samples": samples}
    record = CheckpointRecord(run, 7, state, schedule={"max_lr": rate}, loss_scaler={"scale": scale})
    with tempfile.TemporaryDirectory() as folder:
        write_record(Path(folder), record)
        found = read_record(Path(folder))
    assert (found.schedule["max_lr"].hex(), found.loss_scaler["scale"].hex()) == (rate.hex(), scale.hex())
    assert (found.run.optim.lr.hex(), found.state["consumed_samples"]) == (lr.hex(), samples)


def changed(tmp_path: Path, **values: object) -> Path:
    write_record(tmp_path, example())
    content = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps({**content, **values}))
    return tmp_path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 2}, "has format 2.*reads format 1"),
        ({"format": None}, "has format None"),
        ({"colour": "blue"}, "cannot be read.*colour"),
        ({"state": []}, "cannot be read"),
        ({"state": {"iteration": 1}}, "cannot be read.*consumed_samples"),
        ({"state": {**COUNTERS, "iteration": "1"}}, "a counter is not a number"),
        ({"state": {**COUNTERS, "iteration": -1}}, "a counter is not a number"),
        ({"vocab_size": 1.5}, "a counter is not a number"),
        ({"run": 3}, "cannot be read|does not know"),
        ({"run": {"model": {"num_wheels": 4}}}, "does not know.*num_wheels"),
        ({"tokenizer_files": ["../../outside"]}, "points outside"),
        ({"tokenizer_files": ["/etc/passwd"]}, "points outside"),
        ({"tokenizer_files": ["a/b"]}, "points outside"),
        ({"tokenizer_files": [".."]}, "points outside"),
        ({"tokenizer_files": [3]}, "cannot be read"),
    ],
)
def test_what_this_release_does_not_know_is_refused(tmp_path: Path, values: dict, message: str):
    with pytest.raises(CheckpointError, match=message) as failure:
        read_record(changed(tmp_path, **values))
    assert str(tmp_path / RECORD) in str(failure.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_garbage_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{RECORD} cannot be read"):
        read_record(tmp_path)


def test_a_folder_without_record_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(CheckpointError, match=f"{RECORD} is missing"):
        read_record(tmp_path)


def test_the_layout_of_the_save_is_kept(tmp_path: Path):
    run = tiny_run().with_values(world_size=4, tensor_model_parallel_size=2)
    write_record(tmp_path, replace(example(), run=run))
    assert read_record(tmp_path).run == run
