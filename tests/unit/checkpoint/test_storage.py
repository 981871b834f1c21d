"""Tensors to disk and back, and that nothing but tensors is ever read."""

from __future__ import annotations

import builtins
import io
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from megatron_ext.checkpoint.index import INDEX
from megatron_ext.checkpoint.storage import TensorPlanner, load_tensors, save_tensors
from megatron_ext.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("world")


class Armed:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def sharded(**tensors: torch.Tensor) -> dict[str, ShardedTensor]:
    return {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}


def empty(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


TENSORS = {
    "weight": torch.arange(24, dtype=torch.float32).view(4, 6) / 7,
    "half": torch.linspace(-1, 1, 9).to(torch.bfloat16),
    "special": torch.tensor([float("inf"), -0.0, 1e-45, 3.4e38]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of TENSORS."""
    (tmp_path / "c").mkdir()
    save_tensors(sharded(**TENSORS), tmp_path / "c")
    return tmp_path / "c"


def test_tensors_come_back_bit_for_bit(folder: Path):
    loaded = load_tensors(sharded(**empty(TENSORS)), folder)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8))


def test_no_process_is_left_and_none_was_started(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr("subprocess.Popen", refuse)
    (tmp_path / "again").mkdir()
    save_tensors(sharded(**TENSORS), tmp_path / "again")
    assert (tmp_path / "again" / INDEX).exists()


def test_loading_calls_no_open_unpickler(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle.load was called")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    load = torch.load

    def closed_load(*arguments: object, **options: object) -> object:
        assert options.get("weights_only") is True
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", closed_load)
    (folder / "common.pt").write_bytes(pickle.dumps(Armed(folder.parent / "canary")))
    load_tensors(sharded(**empty(TENSORS)), folder)
    assert not (folder.parent / "canary").exists()


def test_an_object_in_a_checkpoint_is_not_loaded_even_when_it_is_asked_for(tmp_path: Path):
    canary = tmp_path / "canary"
    (tmp_path / "c").mkdir()
    armed = ShardedObject("extra", Armed(canary), (1,), (0,))
    save_tensors({**sharded(**TENSORS), "extra": armed}, tmp_path / "c")
    canary.unlink(missing_ok=True)
    wanted = ShardedObject("extra", None, (1,), (0,))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors({**sharded(**empty(TENSORS)), "extra": wanted}, tmp_path / "c")
    load_tensors(sharded(**empty(TENSORS)), tmp_path / "c")
    assert not canary.exists()


def test_the_planner_unpickles_nothing(tmp_path: Path):
    """The second lock: should an entry of bytes ever get past the index."""
    content = io.BytesIO()
    torch.save(Armed(tmp_path / "canary"), content)
    content.seek(0)
    place = MetadataIndex("weight")
    item = ReadItem(LoadItemType.BYTE_IO, place, torch.Size([0]), place, torch.Size([0]), torch.Size([1]))
    with pytest.raises(ValueError, match="weight is a pickled object"):
        TensorPlanner().load_bytes(item, content)
    assert not (tmp_path / "canary").exists()


def test_a_shard_that_is_a_hostile_pickle_is_refused(folder: Path, tmp_path: Path):
    canary = tmp_path / "canary"
    reader = dcp.FileSystemReader(folder)
    places = [info for info in reader.read_metadata().storage_data.values() if info.length > 200]
    hostile = io.BytesIO()
    torch.save(Armed(canary), hostile)
    [shards] = list(folder.glob("*.distcp"))
    content = bytearray(shards.read_bytes())
    for info in places:
        content[info.offset : info.offset + info.length] = hostile.getvalue().ljust(info.length, b"\0")[: info.length]
    for plain in (False, True):
        if plain:
            for info in places:
                armed = pickle.dumps(Armed(canary)).ljust(info.length, b"\0")
                content[info.offset : info.offset + info.length] = armed
        shards.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_tensors(sharded(**empty(TENSORS)), folder)
        assert not canary.exists()


def test_what_is_not_there_and_what_has_another_shape_is_named(folder: Path):
    wanted = {"weight": torch.zeros(4, 7), "half": torch.zeros(9), "missing": torch.zeros(2)}
    with pytest.raises(CheckpointError) as failure:
        load_tensors(sharded(**wanted), folder)
    message = str(failure.value)
    assert str(folder) in message
    assert "weight has shape (4, 6) there, (4, 7) here" in message
    assert "missing is not there" in message
    assert "half" not in message
    assert "\n" not in message


def test_a_long_list_is_cut(folder: Path):
    with pytest.raises(CheckpointError, match="and 37 more"):
        load_tensors(sharded(**{f"tensor{i}": torch.zeros(1) for i in range(40)}), folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"colour": 1}'])
def test_a_damaged_format_file(folder: Path, content: str):
    (folder / "metadata.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(sharded(**empty(TENSORS)), folder)


@pytest.mark.parametrize("name", ["metadata.json", "__0_0.distcp", INDEX])
def test_a_missing_file(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=str(folder)):
        load_tensors(sharded(**empty(TENSORS)), folder)


@pytest.mark.parametrize(("number", "reason"), [(28, "No space left on device"), (13, "Permission denied")])
def test_a_full_or_closed_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str):
    def refuse(path: object, mode: str = "r", *_: object, **__: object) -> None:
        raise OSError(number, reason)

    (tmp_path / "c").mkdir()
    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(CheckpointError, match=f"writing .* failed: .*{reason}"):
        save_tensors(sharded(**TENSORS), tmp_path / "c")
