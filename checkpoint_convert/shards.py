"""Safetensors shards written tensor by tensor, and read back from a folder.

The library's own writer wants a whole shard in memory; this one needs the current tensor only, because names, shapes
and dtypes are known before the first is read. File: 8 bytes little-endian length of the header, the header (JSON:
name -> dtype, shape, begin and end), the elements of each tensor in turn, little-endian, row-major.
Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from checkpoint_convert.rows import Shape
from megatron_ext.errors import ConversionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
}
"""torch's name of a dtype -> safetensors' name, bytes per element: what an export can hold."""

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Shard:
    """One file: its name and its tensors, in order."""

    file: str
    tensors: tuple[tuple[str, Shape], ...]


def parse_bytes(text: str) -> int:
    """The number of bytes that e.g. `5GB`, `200MiB` or `1000000` says; ConversionError otherwise."""
    for unit, factor in UNITS.items():
        if text.upper().endswith(unit) and text[: -len(unit)].strip().isdigit():
            return _positive(int(text[: -len(unit)]) * factor, text)
    if text.isdigit():
        return _positive(int(text), text)
    raise ConversionError(
        f"--max-shard-size {text}", f"it is a whole number of bytes, or one followed by {', '.join(UNITS)}"
    )


def plan_shards(layout: Sequence[tuple[str, Shape]], dtype: str, max_bytes: int) -> list[Shard]:
    """Cut `layout` into files of at most `max_bytes`, in order; a larger tensor gets a file of its own."""
    groups: list[list[tuple[str, Shape]]] = [[]]
    used = 0
    for name, shape in layout:
        size = _bytes(shape, dtype)
        if groups[-1] and used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append((name, shape))
        used += size
    if len(groups) == 1:
        return [Shard(SINGLE, tuple(groups[0]))]
    count = len(groups)
    return [Shard(f"model-{i:05d}-of-{count:05d}.safetensors", tuple(g)) for i, g in enumerate(groups, start=1)]


def write_shards(root: Path, shards: Sequence[Shard], dtype: str, tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Write `tensors`, which come in the order of `shards`, under `root`, with an index where there are several files.

    Returns:
        Bytes of tensor data written.
    """
    stream = iter(tensors)
    for shard in shards:
        with (root / shard.file).open("wb") as out:
            out.write(_header(shard, dtype))
            for name, shape in shard.tensors:
                _write_tensor(out, name, shape, dtype, next(stream))
    total = sum(_bytes(shape, dtype) for shard in shards for _, shape in shard.tensors)
    if len(shards) > 1:
        weight_map = {name: shard.file for shard in shards for name, _ in shard.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (root / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


class HfFolder:
    """The tensors of a folder with safetensors files, single or sharded; only files inside `root` are opened.

    Raises:
        ConversionError: no safetensors, an index that names a path outside the folder, a missing or damaged file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = _weight_files(root)
        self._where: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        for file in self._files:
            for name in self._handle(file).keys():  # noqa: SIM118  (a handle is not iterable)
                if name in self._where:
                    raise ConversionError(f"{root}: {name} is in {self._where[name]} and in {file}")
                self._where[name] = file

    def names(self) -> list[str]:
        """All names, file by file."""
        return list(self._where)

    def shape(self, name: str) -> Sequence[int]:
        """Shape, from the file's header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Element type, from the file's header."""
        import torch

        code = self._slice(name).get_dtype()
        known = {code: getattr(torch, torch_name) for torch_name, (code, _) in DTYPES.items()}
        if code not in known:
            raise ConversionError(
                f"{self.root / self._where[name]}: {name} has elements of type {code}",
                f"only {', '.join(known)} can be imported",
            )
        return known[code]

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        return self._handle(self._where[name]).get_tensor(name)

    def _slice(self, name: str) -> Any:
        return self._handle(self._where[name]).get_slice(name)

    def _handle(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open:
            try:
                self._open[file] = safe_open(self.root / file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ConversionError(
                    f"{self.root / file} cannot be read: {error}", fix="copy the file again"
                ) from error
        return self._open[file]


def _weight_files(root: Path) -> list[str]:
    if (root / INDEX).is_file():
        try:
            files = sorted(set(json.loads((root / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConversionError(f"{root / INDEX} is no index: {error!r}") from error
        for file in files:
            if not isinstance(file, str) or not _is_plain(file):
                raise ConversionError(f"{root / INDEX} names {file!r}", "it may only name files inside its own folder")
        missing = [file for file in files if not (root / file).is_file()]
        if missing:
            raise ConversionError(
                f"{root}: {', '.join(missing)} named in {INDEX} but not there", fix="copy the files again"
            )
        return files
    if (root / SINGLE).is_file():
        return [SINGLE]
    pickled = sorted(path.name for path in root.glob("*.bin"))
    raise ConversionError(
        f"{root} holds no {SINGLE} and no {INDEX}" + (f", but {', '.join(pickled[:3])}" if pickled else ""),
        "pickled weights can run code and are never opened" if pickled else "",
        "convert them to safetensors first" if pickled else "name a folder that save_pretrained wrote",
    )


def _is_plain(file: str) -> bool:
    path = PurePosixPath(file)
    return len(path.parts) == 1 and not path.is_absolute() and path.parts[0] not in ("..", ".") and "\\" not in file


def _header(shard: Shard, dtype: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shard.tensors:
        end = begin + _bytes(shape, dtype)
        entries[name] = {"dtype": DTYPES[dtype][0], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(out: BinaryIO, name: str, shape: Shape, dtype: str, item: tuple[str, Tensor]) -> None:
    import torch

    given, tensor = item
    if given != name or tuple(tensor.shape) != tuple(shape) or tensor.dtype != getattr(torch, dtype):
        raise AssertionError(f"planned {name} {shape} {dtype}, got {given} {tuple(tensor.shape)} {tensor.dtype}")
    out.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _bytes(shape: Shape, dtype: str) -> int:
    size = DTYPES[dtype][1]
    for length in shape:
        size *= length
    return size


def _positive(number: int, text: str) -> int:
    if number < 1:
        raise ConversionError(f"--max-shard-size {text}", "it must be at least one byte")
    return number


def total_bytes(layout: Iterable[tuple[str, Shape]], dtype: str) -> int:
    """Bytes of tensor data that `layout` takes."""
    return sum(_bytes(shape, dtype) for _, shape in layout)
