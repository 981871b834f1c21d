"""The index of shards, read as data: nothing in it is imported or called, no name in it leaves the folder (law L9).

torch.distributed.checkpoint keeps its index as a pickle (`.metadata`) and reads it with `pickle.load`. Here every
global of the pickle becomes an inert stand-in, and the index is rebuilt from the stand-ins' plain values.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_ext.errors import CheckpointError

INDEX = ".metadata"
_SHARD_FILE = re.compile(r"\w[\w-]*\.distcp")
_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}
_DTYPES = {("torch", str(value).removeprefix("torch.")): value for value in vars(torch).values()
           if isinstance(value, torch.dtype)}  # fmt: skip


class IndexReader(dcp.FileSystemReader):
    """torch.distributed.checkpoint's reader of shards, over an index that `read_index` has read.

    Args:
        folder: the checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.index = read_index(folder)

    @property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Name -> dtype, full shape and shards of every tensor of the checkpoint."""
        entries = self.index.state_dict_metadata.items()
        return {name: entry for name, entry in entries if isinstance(entry, TensorStorageMetadata)}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index; the file is not opened again."""
        del args, kwargs
        return self.index


def read_index(folder: Path) -> Metadata:
    """Return the index of a checkpoint's tensors; entries that are not tensors (pickled objects) are left out.

    Raises:
        CheckpointError: the index is missing, damaged, asks for code, or contradicts itself or the shard files.
    """
    path = folder / INDEX
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", fix="use another checkpoint with --ckpt-step") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    try:
        _refuse_memory_bomb(content)
        return _index_of(folder, _InertUnpickler(io.BytesIO(content)).load())
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not an index of shards: {reason}",
            "it may hold shapes, offsets and names of the checkpoint's own shard files, nothing else",
            "do not trust this checkpoint; use another one with --ckpt-step",
        ) from None


class _Record:
    """What a class of the index becomes: its name and the plain values it was built from."""

    kind = ""

    def __init__(self, *arguments: Any) -> None:
        self.values: Any = arguments

    def __setstate__(self, values: Any) -> None:
        self.values = values


class _InertUnpickler(pickle.Unpickler):
    """Knows a closed list of names; looks none of them up.

    The stand-in classes are made anew for each file, so that a pickle that sets attributes on a class changes
    nothing that outlives it.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._known: dict[tuple[str, str], Any] = dict(_DTYPES)
        self._known |= {key: type(key[1], (_Record,), {"kind": key[1]}) for key in _RECORDS}
        self._known["torch", "Size"] = torch.Size
        for name in ("Path", "PosixPath"):
            self._known["pathlib", name] = type(name, (_Record,), {"kind": name})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it asks for {module!r}, {name!r}")
        return self._known[module, name]


def _refuse_memory_bomb(content: bytes) -> None:
    """The unpickler allocates as many memo places as a PUT says, before it looks at anything else."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"memo place {argument} in a file of {len(content)} bytes")


def _index_of(folder: Path, raw: Any) -> Metadata:
    values = _values(raw, "Metadata")
    tensors = {
        _text(name): _tensor(entry)
        for name, entry in values["state_dict_metadata"].items()
        if getattr(entry, "kind", "") != "BytesStorageMetadata"
    }
    places = {
        place: _storage(info)
        for place, info in ((_place(key), info) for key, info in values["storage_data"].items())
        if place.fqn in tensors
    }
    _check_files(folder, places.values())
    for name, tensor in tensors.items():
        _check_chunks(name, tensor, places)
    return Metadata(state_dict_metadata=dict(tensors), storage_data=places, storage_meta=StorageMeta())


def _values(raw: Any, kind: str) -> Any:
    if getattr(raw, "kind", "") != kind:
        raise ValueError(f"{type(raw).__name__} where {kind} belongs")
    return raw.values


def _tensor(raw: Any) -> TensorStorageMetadata:
    values = _values(raw, "TensorStorageMetadata")
    dtype, *_ = _values(values["properties"], "TensorProperties")
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {dtype}")
    chunks = [_values(chunk, "ChunkStorageMetadata") for chunk in values["chunks"]]
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=dtype),
        size=_size(values["size"]),
        chunks=[ChunkStorageMetadata(offsets=_size(c["offsets"]), sizes=_size(c["sizes"])) for c in chunks],
    )


def _place(raw: Any) -> MetadataIndex:
    values = _values(raw, "MetadataIndex")
    offset = values.get("offset")
    return MetadataIndex(_text(values["fqn"]), None if offset is None else _size(offset))


def _storage(raw: Any) -> _StorageInfo:
    values = _values(raw, "_StorageInfo")
    if values.get("transform_descriptors"):
        raise ValueError("a shard asks to be transformed")
    return _StorageInfo(_text(values["relative_path"]), _natural(values["offset"]), _natural(values["length"]))


def _check_files(folder: Path, places: Iterable[_StorageInfo]) -> None:
    sizes: dict[str, int] = {}
    for info in places:
        name = info.relative_path
        if not _SHARD_FILE.fullmatch(name) or PurePosixPath(name).name != name or (folder / name).is_symlink():
            raise ValueError(f"{name!r} is not the name of a shard file of this folder")
        if name not in sizes:
            sizes[name] = (folder / name).stat().st_size
        if info.offset + info.length > sizes[name]:
            raise ValueError(f"{name} has {sizes[name]} bytes, a shard ends at {info.offset + info.length}")


def _check_chunks(name: str, tensor: TensorStorageMetadata, places: dict[MetadataIndex, _StorageInfo]) -> None:
    """Every chunk lies inside its tensor and is stored in full, and the chunks fill the tensor."""
    for chunk in tensor.chunks:
        inside = len(chunk.sizes) == len(chunk.offsets) == len(tensor.size) and all(
            offset + size <= total for offset, size, total in zip(chunk.offsets, chunk.sizes, tensor.size, strict=True)
        )
        place = places.get(MetadataIndex(name, chunk.offsets))
        if not inside or place is None or place.length < math.prod(chunk.sizes) * tensor.properties.dtype.itemsize:
            raise ValueError(f"{name} has a shard outside of its shape or shorter than its shape")
    if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
        raise ValueError(f"the shards of {name} do not fill its shape {tuple(tensor.size)}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where a name belongs")
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} where a number of bytes belongs")
    return value


def _size(value: Any) -> torch.Size:
    if not isinstance(value, torch.Size) or any(length < 0 for length in value):
        raise ValueError(f"{value!r} where a shape belongs")
    return value
