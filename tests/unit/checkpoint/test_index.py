"""The index of shards is data: a hostile one is refused before anything in it runs, a real one reads back in full.

Each hostile pickle tries to create a canary file. See CVE-2025-23357 and CVE-2026-24150 for the same hole elsewhere.
"""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_ext.checkpoint.index import INDEX, IndexReader, read_index
from megatron_ext.errors import CheckpointError

SHARD_FILE = "__0_0.distcp"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tensors as torch itself stores them."""
    tensors = {"a.weight": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(tmp_path / "c"), no_dist=True)
    return tmp_path / "c"


def plain(metadata: Metadata) -> tuple:
    """All of an index that says where tensors are."""
    entries = metadata.state_dict_metadata.items()
    tensors = {name: (entry.properties.dtype, entry.size, entry.chunks) for name, entry in entries}
    places = {(key.fqn, key.offset): (i.relative_path, i.offset, i.length) for key, i in metadata.storage_data.items()}
    return tensors, places


def test_a_real_index_reads_as_torch_reads_it(folder: Path):
    assert plain(read_index(folder)) == plain(dcp.FileSystemReader(folder).read_metadata())
    reader = IndexReader(folder)
    assert set(reader.tensors) == {"a.weight", "b"}
    target = {"a.weight": torch.empty(3, 4), "b": torch.empty(5, dtype=torch.bfloat16)}
    (folder / INDEX).write_bytes(b"")  # the file that was checked is the file that is used
    dcp.load(target, storage_reader=reader, no_dist=True)
    assert torch.equal(target["a.weight"], torch.arange(12.0).view(3, 4))
    assert torch.equal(target["b"], torch.ones(5, dtype=torch.bfloat16))


def test_a_missing_index(folder: Path):
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"{INDEX} is missing"):
        read_index(folder)


def test_every_shortened_index_is_refused(folder: Path):
    content = (folder / INDEX).read_bytes()
    for length in range(0, len(content), 7):
        (folder / INDEX).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not an index of shards"):
            read_index(folder)


def test_random_damage_is_refused_or_harmless(folder: Path):
    content, chance = (folder / INDEX).read_bytes(), random.Random(0)
    for _ in range(400):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] = chance.randrange(256)
        (folder / INDEX).write_bytes(changed)
        try:
            read_index(folder)
        except CheckpointError as error:
            assert INDEX in str(error)


# hostile pickles ------------------------------------------------------------------------------------------------


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named_call(module: str, name: str, argument: bytes) -> bytes:
    """STACK_GLOBAL, which follows dots in the name, then a call with one argument."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + argument + b"\x85R."


def hostile_pickles(canary: Path) -> dict[str, bytes]:
    shell, touch = text(f"touch {canary}"), f"open({str(canary)!r}, 'w')"
    metadata, planner = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.planner"
    reduced = {
        "os.system": Reduced(os.system, f"touch {canary}"),
        "eval": Reduced(eval, touch),
        "exec": Reduced(exec, touch),
        "open": Reduced(open, str(canary), "w"),
        "Path.touch": Reduced(Path.touch, canary),
        "getattr": Reduced(getattr, Path, "touch"),
        "import": Reduced(__import__, "antigravity"),
        "torch.load": Reduced(torch.load, str(canary)),
        "torch.save": Reduced(torch.save, 1, str(canary)),
        "nested": {"a": [({"b": Reduced(os.system, f"touch {canary}")},)]},
    }
    pickles = {f"{name}, protocol {p}": pickle.dumps(value, p) for name, value in reduced.items() for p in (0, 2, 4)}
    inside = Metadata({"a": Reduced(os.system, f"touch {canary}")}, storage_data={})
    return pickles | {
        "inside an index": pickle.dumps(inside),
        "by a module's own import": named_call(metadata, "os.system", shell),
        "by a module's import of a module": named_call(planner, "torch.os.system", shell),
        "by operator": named_call(planner, "operator.methodcaller", text("touch")),
        "by reduce": named_call(planner, "reduce", shell),
        "by a class's globals": named_call(metadata, "Metadata.__init__.__globals__", shell),
        "by torch.Size": named_call("torch", "Size.__class__", shell),
        "by a dtype": named_call("torch", "float32.__class__", shell),
        "by torch": named_call("torch", "os.system", shell),
        "inst": b"(" + b"S'touch " + str(canary).encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + shell + b"o.",
        "persistent id": b"Pabc\n.",
        "extension": b"\x82\x01.",
        "build on a class": b"\x80\x02c" + metadata.encode() + b"\nMetadata\nN}" + text("evil") + b"K\x01s\x86b.",
    }


def names() -> list[str]:
    return sorted(hostile_pickles(Path("canary")))


@pytest.mark.parametrize("name", names())
def test_a_hostile_index_is_refused_and_nothing_happens(folder: Path, name: str):
    canary = folder.parent / "canary"
    (folder / INDEX).write_bytes(hostile_pickles(canary)[name])
    before = sorted(os.listdir(folder.parent))
    with pytest.raises(CheckpointError, match=f"{INDEX} is not an index of shards.*do not trust"):
        read_index(folder)
    assert sorted(os.listdir(folder.parent)) == before
    assert not hasattr(Metadata, "evil")


def test_the_hostile_pickles_are_armed(tmp_path: Path):
    """Python's own unpickler falls for those that call by name, so the test above can fail."""
    for name in ("os.system, protocol 4", "eval, protocol 0", "by a module's own import", "inst", "obj"):
        canary = tmp_path / "canary"
        pickle.loads(hostile_pickles(canary)[name])
        assert canary.exists(), name
        canary.unlink()


def test_a_registered_extension_is_no_way_in(folder: Path):
    copyreg.add_extension("os", "system", 199)
    try:
        (folder / INDEX).write_bytes(b"\x80\x02\x82\xc7" + text(f"touch {folder.parent / 'canary'}") + b"\x85R.")
        with pytest.raises(CheckpointError, match="not an index of shards"):
            read_index(folder)
    finally:
        copyreg.remove_extension("os", "system", 199)
    assert not (folder.parent / "canary").exists()


@pytest.mark.parametrize("bomb", [b"\x80\x02N" + b"r\xff\xff\xff\x7f" + b".", b"Np99999999999\n."])
def test_a_memory_bomb_is_refused(folder: Path, bomb: bytes):
    (folder / INDEX).write_bytes(bomb)
    with pytest.raises(CheckpointError, match="memo place"):
        read_index(folder)


# well-formed indexes that lie -----------------------------------------------------------------------------------


def index(**changes: Any) -> Metadata:
    """An index of one 2 x 4 tensor in SHARD_FILE, with changes."""
    values = {
        "size": torch.Size([2, 4]), "offsets": torch.Size([0, 0]), "sizes": torch.Size([2, 4]), "dtype": torch.float32,
        "path": SHARD_FILE, "offset": 0, "length": 64, "transforms": None, "key": "w", **changes,
    }  # fmt: skip
    entry = TensorStorageMetadata(
        TensorProperties(values["dtype"]), values["size"], [ChunkStorageMetadata(values["offsets"], values["sizes"])]
    )
    place = _StorageInfo(values["path"], values["offset"], values["length"], values["transforms"])
    return Metadata({"w": entry}, storage_data={MetadataIndex(values["key"], values["offsets"]): place})


def written(folder: Path, metadata: Metadata) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / SHARD_FILE).write_bytes(b"\0" * 100)
    (folder / INDEX).write_bytes(pickle.dumps(metadata))
    return folder


def test_the_unchanged_example_is_a_good_index(tmp_path: Path):
    assert plain(read_index(written(tmp_path / "c", index()))) == plain(index())


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "../secret.distcp"},
        {"path": "/etc/passwd"},
        {"path": "sub/x.distcp"},
        {"path": ".metadata"},
        {"path": "missing.distcp"},
        {"path": "__0_0.distcp\n"},
        {"path": 3},
        {"offset": 90},
        {"offset": -1},
        {"offset": "0"},
        {"offset": True},
        {"length": 8},
        {"length": 2**70},
        {"length": float("inf")},
        {"transforms": ["stream.zstd/1"]},
        {"key": "v"},
        {"dtype": "float32"},
        {"dtype": 5},
        {"size": torch.Size([10**12, 4])},
        {"size": torch.Size([2, 4, 1])},
        {"size": torch.Size([-2, -4]), "sizes": torch.Size([-2, -4])},
        {"size": (2, 4)},
        {"sizes": torch.Size([1, 4])},
        {"offsets": torch.Size([1, 0])},
        {"offsets": None},
    ],
    ids=str,
)
def test_an_index_that_lies_is_refused(tmp_path: Path, changes: dict):
    (tmp_path / "secret.distcp").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        read_index(written(tmp_path / "c", index(**changes)))


def test_a_shard_file_that_is_a_link_is_refused(tmp_path: Path):
    folder = written(tmp_path / "c", index())
    (folder / SHARD_FILE).rename(tmp_path / "secret")
    (folder / SHARD_FILE).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="not the name of a shard file"):
        read_index(folder)


@pytest.mark.parametrize("content", [None, 3, [], {}, {"state_dict_metadata": {}}, torch.Size([1]), torch.float32])
def test_other_plain_things_are_no_index(tmp_path: Path, content: Any):
    written(tmp_path / "c", content)
    with pytest.raises(CheckpointError, match="not an index of shards"):
        read_index(tmp_path / "c")


def test_a_pickled_object_never_becomes_an_entry(tmp_path: Path):
    """torch would load such an entry with an open unpickler."""
    metadata = index()
    disguised = BytesStorageMetadata()
    disguised.size = torch.Size([2, 4])
    metadata.state_dict_metadata["object"] = disguised
    metadata.storage_data[MetadataIndex("object")] = _StorageInfo(SHARD_FILE, 0, 10)
    found = read_index(written(tmp_path / "c", metadata))
    assert set(found.state_dict_metadata) == {"w"}
    assert {place.fqn for place in found.storage_data} == {"w"}


def test_an_unpickled_file_with_two_pickles_is_read_once(tmp_path: Path):
    folder = written(tmp_path / "c", index())
    second = io.BytesIO()
    pickle.dump(Reduced(os.system, f"touch {tmp_path / 'canary'}"), second)
    with (folder / INDEX).open("ab") as file:
        file.write(second.getvalue())
    assert plain(read_index(folder)) == plain(index())
    assert not (tmp_path / "canary").exists()
