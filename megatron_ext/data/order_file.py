"""Order files: sample ids in the order they are to be trained on, made for one dataset, mapped and never loaded.

Format: one line of JSON, padded with spaces so that it has a multiple of 64 bytes with its newline; then `count`
sample ids as little-endian int64. The header tells the format and its version, the count, the sha256 of the ids,
what the order was made for (dataset, split, sequence length) and how, and what it promises: `permutation`, that every
sample stands in it once, or `distinct`, that none stands in it twice; without these fields it promises nothing. The
last field, `header_sha256`, is the checksum of the header without it, so that no byte of the file changes unnoticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from megatron_ext.data.preprocessing.output_file import writing_failed
from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

FORMAT = "megatron_ext sample order"
FORMAT_VERSION = 2
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 1 << 20
_BLOCK = 1 << 20
_SEEN_AT_ONCE = 1 << 27
"""Samples of which it is remembered at a time whether they were seen: 128 MiB."""
_MAKE_AGAIN = "Make the order file again for this data"


@dataclass(frozen=True)
class OrderTarget:
    """What sample ids mean: window i of these sequences, cut to this length, or one of the sequences themselves.

    Attributes:
        dataset: identity of the dataset (IndexedDataset.identity).
        first_sequence: first sequence of the split.
        last_sequence: one past the last sequence of the split.
        seq_length: tokens in a sample, without the one label more.
        num_samples: samples in one epoch; ids are 0 .. num_samples-1.
        packing: what a sample is, the value of --dataset-packing.
    """

    dataset: str
    first_sequence: int
    last_sequence: int
    seq_length: int
    num_samples: int
    packing: str = "stream"


def write_order_file(path: Path, sample_ids: ArrayLike, target: OrderTarget, made_by: Mapping[str, Any]) -> None:
    """Write and publish an order file.

    Args:
        path: where; replaced in one step if it exists.
        sample_ids: `[count]` integers in [0, target.num_samples); repetitions and omissions are allowed.
        target: the data it is for (`WindowView.target`).
        made_by: how the order came about, for the record.

    Raises:
        DataError: an id is out of range, or the file cannot be written.
    """
    ids = np.ascontiguousarray(sample_ids, dtype="<i8")
    if not ids.size:
        raise DataError(f"the order for {path} has no samples")
    with OrderFileWriter(path, len(ids), target, made_by) as writer:
        writer.append(ids)
        writer.publish()


class OrderFileWriter:
    """Writes an order file from beginning to end in constant memory, and publishes it when it is complete.

    Args:
        path: where; replaced in one step if it exists.
        count: ids that will be written.
        target: the data it is for.
        made_by: how the order comes about, for the record.
        promise: "permutation", "distinct" or "" (see the head of this file); whoever opens the file checks it.

    Raises:
        DataError: the file cannot be written, or the promise cannot be kept by that many ids.
    """

    def __init__(
        self, path: Path, count: int, target: OrderTarget, made_by: Mapping[str, Any], promise: str = ""
    ) -> None:
        self._path, self._count, self._target = path, count, target
        self._header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "count": count,
            "dtype": "int64 little-endian",
            "sha256": "0" * 64,  # of the same length as what takes its place in the end
            **({promise: True} if promise else {}),
            "target": dataclasses.asdict(target),
            "made_by": dict(made_by),
        }
        _check_promise(path, self._header, count, target)
        if len(_header_bytes(self._header)) > _MAX_HEADER_BYTES:
            raise DataError(f"the header of {path} is too long", f"It may have {_MAX_HEADER_BYTES} bytes")
        self._hash = hashlib.sha256()
        self._written = 0
        self._file = PendingFile(path)
        self._file.write(_header_bytes(self._header))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.discard()

    def append(self, sample_ids: ArrayLike) -> None:
        """Write the next ids, integers `[k]` in [0, target.num_samples).

        Raises:
            DataError: an id is out of range, or the disk is full or fails.
        """
        ids = np.ascontiguousarray(sample_ids, dtype="<i8")
        _check_range(ids, self._written, self._target.num_samples, self._path)
        content = ids.data.cast("B")
        self._hash.update(content)
        self._file.write(content)
        self._written += len(ids)

    def publish(self) -> None:
        """Complete the header and give the file its name.

        Raises:
            DataError: the disk fails.
        """
        if self._written != self._count:
            raise ValueError(f"{self._written} ids were written of {self._count}")
        self._header["sha256"] = self._hash.hexdigest()
        self._file.finish()
        try:
            with self._file.partial.open("r+b") as stream:
                stream.write(_header_bytes(self._header))
        except OSError as error:
            raise writing_failed(self._path, error) from None
        self._file.finish()
        self._file.publish()


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    own = hashlib.sha256(json.dumps(header, ensure_ascii=True).encode("ascii")).hexdigest()
    line = json.dumps({**header, "header_sha256": own}, ensure_ascii=True).encode("ascii")
    return line + b" " * (-(len(line) + 1) % _ALIGNMENT) + b"\n"


class FileOrder:
    """The order of a file; after its last id it begins again.

    Opening reads the ids once, in blocks, to check the checksum and the range; and once for every 2^27 samples, if
    the file promises that no sample stands in it twice.

    Args:
        path: the order file.
        target: the data it is to be used with.

    Attributes:
        made_by: how the order came about, as its maker says.

    Raises:
        DataError: the file is missing, damaged, made for other data, or does not keep what it promises.
    """

    def __init__(self, path: Path, target: OrderTarget) -> None:
        header, offset = _read_header(path)
        self._ids = _map_ids(path, header, offset)
        _check_target(path, header, target)
        _check_promise(path, header, len(self._ids), target)
        self.made_by: dict[str, Any] = header["made_by"] if isinstance(header.get("made_by"), dict) else {}
        digest = hashlib.sha256()
        for first, block in _blocks(self._ids):
            digest.update(np.ascontiguousarray(block).data.cast("B"))
            _check_range(block, first, target.num_samples, path)
        if digest.hexdigest() != header.get("sha256"):
            raise DataError(f"the order file {path} is damaged: its checksum does not match", fix=_MAKE_AGAIN)
        if header.get("permutation") or header.get("distinct"):
            _refuse_repeated(path, self._ids, target.num_samples)

    def __len__(self) -> int:
        """Number of ids in the file."""
        return len(self._ids)

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Sample ids at places start .. start+count-1, int64 `[count]`."""
        places = np.arange(start, start + count, dtype=np.int64) % len(self._ids)
        return self._ids[places].astype(np.int64)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as stream:
            line = stream.readline(_MAX_HEADER_BYTES)
    except OSError as error:
        raise DataError(
            f"--dataset-order {path} cannot be read ({error.strerror})",
            "It is permuted, megatron, sequential, or the path of an order file",
        ) from None
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT or not line.endswith(b"\n"):
        raise DataError(f"{path} is not an order file: it does not begin with its header", fix=_MAKE_AGAIN)
    if header.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"the order file {path} has format version {header.get('format_version')}",
            f"This program knows version {FORMAT_VERSION}",
            _MAKE_AGAIN,
        )
    header.pop("header_sha256", None)
    if _header_bytes(header) != line:
        raise DataError(f"the order file {path} is damaged: its header is not what its checksum says", fix=_MAKE_AGAIN)
    return header, len(line)


def _map_ids(path: Path, header: dict[str, Any], offset: int) -> Int64Array:
    count, size = header.get("count"), path.stat().st_size
    if not isinstance(count, int) or count < 1 or size != offset + 8 * count:
        raise DataError(
            f"the order file {path} is damaged: it has {size} bytes",
            f"Its header speaks of {count} ids of 8 bytes after {offset} bytes of header",
            _MAKE_AGAIN,
        )
    return np.memmap(path, dtype="<i8", mode="r", offset=offset, shape=(count,)).view(np.ndarray)


def _check_target(path: Path, header: dict[str, Any], target: OrderTarget) -> None:
    said = header.get("target")
    said = said if isinstance(said, dict) else {}
    for field in dataclasses.fields(target):
        wanted, found = getattr(target, field.name), said.get(field.name)
        if found != wanted:
            raise DataError(
                f"the order file {path} was made for other data: its {field.name} is {found}",
                f"This run's is {wanted}",
                _MAKE_AGAIN + ", or give the --data-path, --split, --seq-length and --dataset-packing it was made for",
            )


def _check_promise(path: Path, header: Mapping[str, Any], count: int, target: OrderTarget) -> None:
    """Refuse a header whose promise is unreadable, or cannot be kept by so many ids."""
    for name in ("permutation", "distinct"):
        if not isinstance(header.get(name, False), bool):
            raise DataError(f"the order file {path} is damaged: its {name} is neither true nor false", fix=_MAKE_AGAIN)
    wrong = count != target.num_samples if header.get("permutation") else count > target.num_samples
    if wrong and (header.get("permutation") or header.get("distinct")):
        raise DataError(
            f"the order {path} promises every sample {'once' if header.get('permutation') else 'at most once'}",
            f"It has {count} ids, the data {target.num_samples} samples",
            _MAKE_AGAIN,
        )


def _refuse_repeated(path: Path, ids: Int64Array, num_samples: int) -> None:
    """Raise DataError when an id stands in `ids` int64 `[count]`, all below `num_samples`, more than once."""
    for lowest in range(0, num_samples, _SEEN_AT_ONCE):
        size = min(_SEEN_AT_ONCE, num_samples - lowest)
        seen, count = np.zeros(size, bool), 0
        for _, block in _blocks(ids):
            here = block if size == num_samples else _between(block, lowest, size)
            seen[here - lowest] = True
            count += len(here)
        if np.count_nonzero(seen) != count:
            raise _repeated(path, ids, lowest, size)


def _repeated(path: Path, ids: Int64Array, lowest: int, size: int) -> DataError:
    seen = np.zeros(size, bool)
    for first, block in _blocks(ids):
        here = _between(block, lowest, size)
        unique, places = np.unique(here, return_index=True)
        again = seen[unique - lowest]
        if again.any() or len(unique) != len(here):
            twice = unique[again][0] if again.any() else np.delete(here, places)[0]
            return DataError(
                f"the order {path} promises no sample twice, but sample id {twice} stands in it again between places "
                f"{first} and {first + len(block) - 1}",
                fix=_MAKE_AGAIN,
            )
        seen[here - lowest] = True
    raise AssertionError("an id was repeated a moment ago")


def _between(ids: Int64Array, lowest: int, size: int) -> Int64Array:
    return ids[(ids >= lowest) & (ids < lowest + size)]


def _blocks(ids: Int64Array) -> Iterator[tuple[int, Int64Array]]:
    """Places and pieces of mapped ids, piece after piece."""
    for first in range(0, len(ids), _BLOCK):
        yield first, ids[first : first + _BLOCK]


def _check_range(ids: Int64Array, first: int, num_samples: int, path: Path) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= num_samples))
    if wrong.size:
        raise DataError(
            f"the order {path} holds sample id {ids[wrong[0]]} at place {first + int(wrong[0])}",
            f"The data has samples 0 to {num_samples - 1}",
            _MAKE_AGAIN,
        )
