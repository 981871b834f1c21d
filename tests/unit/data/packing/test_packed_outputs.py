"""The files of a packing run appear together and last of all the manifests; counts that do not add up never do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.packed_outputs import PackedOutputs, refuse_existing, refuse_input_as_output
from megatron_ext.data.packing.plan import Dropped, PackPlan
from megatron_ext.data.packing.stream import plan_stream
from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import read_manifest
from megatron_ext.errors import DataError
from tests.unit.data.packing.finished import finished, settings_for


@pytest.fixture
def joined(tmp_path: Path) -> JoinedDatasets:
    return JoinedDatasets([finished(tmp_path / "in", [[1, 2, 3], [], [4, 5]], key="a")])


@pytest.fixture
def plan(joined: JoinedDatasets) -> PackPlan:
    return plan_stream(joined, settings_for("stream", joined, seq_length=2))


def test_nothing_is_visible_before_publish_and_nothing_else_remains(joined, plan, tmp_path: Path):
    outputs = PackedOutputs(str(tmp_path / "out"), joined, plan)
    outputs.write()
    assert all(path.name.endswith(".partial") for path in tmp_path.glob("out*"))
    outputs.publish()
    outputs.discard()
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.bin", "out.idx", "out.manifest.json"]
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert (manifest.records.read, manifest.records.written, manifest.records.empty) == (3, 2, 1)


def test_a_run_that_dies_while_it_publishes_leaves_no_manifest_of_other_files(joined, plan, tmp_path, monkeypatch):
    for overwrite in (False, True):
        outputs = PackedOutputs(str(tmp_path / "out"), joined, plan)
        outputs.write()
        if overwrite:
            monkeypatch.setattr(PendingFile, "publish", _killed)
            with pytest.raises(KeyboardInterrupt):
                outputs.publish()
        else:
            outputs.publish()
        outputs.discard()
    assert not (tmp_path / "out.manifest.json").exists()
    assert not (tmp_path / "out.idx").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_two_runs_cannot_write_the_same_output(joined, plan, tmp_path: Path):
    outputs = PackedOutputs(str(tmp_path / "out"), joined, plan)
    with pytest.raises(DataError, match="another run is writing"):
        PackedOutputs(str(tmp_path / "out"), joined, plan)
    outputs.discard()


def test_tokens_that_do_not_add_up_are_never_published(joined, plan, tmp_path: Path):
    part = dataclasses.replace(plan.parts[0], dropped=(Dropped("tail", 0, 1),))
    outputs = PackedOutputs(str(tmp_path / "out"), joined, dataclasses.replace(plan, parts=[part]))
    outputs.write()
    with pytest.raises(AssertionError, match="do not add up: 5 read"):
        outputs.publish()
    outputs.discard()
    assert not list(tmp_path.glob("out*"))


def test_existing_outputs_are_refused_unless_they_are_to_be_replaced(tmp_path: Path):
    refuse_existing(str(tmp_path / "out"), [""], overwrite=False)
    (tmp_path / "out_8.loss_mask").write_text("")
    with pytest.raises(DataError, match=r"out_8\.loss_mask exists already"):
        refuse_existing(str(tmp_path / "out"), ["_4", "_8"], overwrite=False)
    refuse_existing(str(tmp_path / "out"), ["_4", "_8"], overwrite=True)


def test_an_output_with_the_name_of_an_input_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="would replace the input"):
        refuse_input_as_output(str(tmp_path / "a"), ["_4", "_8"], [str(tmp_path / "b"), str(tmp_path / "a_8")])
    refuse_input_as_output(str(tmp_path / "a"), ["_4"], [str(tmp_path / "a")])


def test_keys_of_several_inputs_are_joined(joined, tmp_path: Path):
    both = JoinedDatasets([joined.stores[0].prefix, finished(tmp_path / "more", [[7, 8]], key="b")])
    outputs = PackedOutputs(str(tmp_path / "out"), both, plan_stream(both, settings_for("stream", both, seq_length=4)))
    outputs.write()
    outputs.publish()
    outputs.discard()
    manifest = IndexedDataset(tmp_path / "out").manifest
    assert manifest is not None
    assert (manifest.key, manifest.append_eod) == ("a+b", False)


def _killed(file: PendingFile) -> None:
    raise KeyboardInterrupt
