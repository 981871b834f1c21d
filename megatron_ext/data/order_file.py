"""Order files: sample ids in the order of training, for a dataset or several laid end to end, read when needed.

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
import os
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from megatron_ext import native
from megatron_ext.data.preprocessing.output_file import writing_failed
from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

FORMAT = "megatron_ext sample order"
FORMAT_VERSION = 2
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 1 << 24
_BLOCK = 1 << 20
_SEEN_AT_ONCE = 1 << 30
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

    def difference(self, said: Mapping[str, Any]) -> tuple[str, object, object] | None:
        """What `said` of an order file differs in first: its name, its value there, its value here."""
        if said.get("parts"):
            return "number of datasets", len(said["parts"]) if isinstance(said["parts"], list) else "unreadable", 1
        for field in dataclasses.fields(OrderTarget):
            found, wanted = said.get(field.name), getattr(self, field.name)
            if found != wanted:
                return field.name, found, wanted
        return None


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
        outside, _ = native.misplaced_ids(ids, self._target.num_samples, 0)
        if outside >= 0:
            raise _outside(self._path, int(ids[outside]), self._written + outside, self._target)
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

    Opening reads the ids in two threads at the same time: in one for their checksum; in the other for ids that do not
    exist and, if the file promises that none stands in it twice, once more for every 2^30 samples. From then on only
    the ids asked for are read, from the file that was opened, whatever takes its name; a file that is written to while
    it is in use is read for its checksum once more.

    Args:
        path: the order file.
        target: the data it is to be used with.

    Attributes:
        made_by: how the order came about, as its maker says.

    Raises:
        DataError: the file is missing, damaged, made for other data, or does not keep what it promises.
    """

    def __init__(self, path: Path, target: OrderTarget) -> None:
        self._path = path
        self._stream = _opened(path)
        weakref.finalize(self, self._stream.close)  # an order has no end of its own: it goes with its view
        self._state = self._file_state()
        self._header, self._offset = _read_header(path, self._stream)
        self._count = _checked_count(path, self._header, self._offset, self._state[0])
        _check_target(path, self._header, target)
        _check_promise(path, self._header, self._count, target)
        self.made_by: dict[str, Any] = self._header["made_by"] if isinstance(self._header.get("made_by"), dict) else {}
        self._check_ids(target)

    def __len__(self) -> int:
        """Number of ids in the file."""
        return self._count

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Sample ids at places start .. start+count-1, int64 `[count]`.

        Raises:
            DataError: the file was changed since it was opened, or cannot be read.
        """
        ids, done = np.empty(count, "<i8"), 0
        while done < count:
            first = (start + done) % self._count
            here = ids[done : done + self._count - first]
            self._read(here.data.cast("B"), self._offset + 8 * first)
            done += len(here)
        if self._file_state() != self._state:
            self._check_again()
        return ids.astype(np.int64, copy=False)

    def _read(self, content: memoryview, offset: int) -> None:
        while content:
            try:
                size = os.preadv(self._stream.fileno(), [content], offset)
            except OSError as error:
                raise DataError(f"the order file {self._path} cannot be read ({error.strerror})") from None
            if not size:
                raise self._changed()
            content, offset = content[size:], offset + size

    def _check_ids(self, target: OrderTarget) -> None:
        ids, twice_is_wrong = self._mapped(), bool(self._header.get("permutation") or self._header.get("distinct"))
        with ThreadPoolExecutor(1) as beside:
            digest = beside.submit(_sha256, ids)
            outside, repeated = native.misplaced_ids(ids, target.num_samples, _SEEN_AT_ONCE if twice_is_wrong else 0)
        if outside >= 0:
            raise _outside(self._path, int(ids[outside]), outside, target)
        if digest.result() != self._header.get("sha256"):
            raise DataError(f"the order file {self._path} is damaged: its checksum does not match", fix=_MAKE_AGAIN)
        if repeated >= 0:
            raise DataError(
                f"the order {self._path} promises no sample twice, but sample id {ids[repeated]} stands in it at place "
                f"{_first_place(ids, int(ids[repeated]))} and again at place {repeated}",
                fix=_MAKE_AGAIN,
            )

    def _check_again(self) -> None:
        """A file may be touched, but not changed."""
        state = self._file_state()
        if state[0] != self._state[0] or _sha256(self._mapped()) != self._header.get("sha256"):
            raise self._changed()
        self._state = state

    def _mapped(self) -> Int64Array:
        return np.memmap(self._stream, "<i8", "r", self._offset, (self._count,)).view(np.ndarray)

    def _file_state(self) -> tuple[int, int]:
        state = os.fstat(self._stream.fileno())
        return state.st_size, state.st_mtime_ns

    def _changed(self) -> DataError:
        return DataError(
            f"the order file {self._path} was changed while it was in use",
            f"It had {self._state[0]} bytes when it was opened and has {self._file_state()[0]} now",
            "Write a new file beside it and rename that, as tools/build_curriculum.py does; " + _MAKE_AGAIN.lower(),
        )


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"--dataset-order {path} cannot be read ({error.strerror})",
            "It is permuted, megatron, sequential, or the path of an order file",
        ) from None


def _read_header(path: Path, stream: IO[bytes]) -> tuple[dict[str, Any], int]:
    try:
        line = stream.readline(_MAX_HEADER_BYTES)
    except OSError as error:
        raise DataError(f"the order file {path} cannot be read ({error.strerror})") from None
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
    try:
        is_whole = _header_bytes(header) == line
    except RecursionError:
        is_whole = False
    if not is_whole:
        raise DataError(f"the order file {path} is damaged: its header is not what its checksum says", fix=_MAKE_AGAIN)
    return header, len(line)


def _checked_count(path: Path, header: dict[str, Any], offset: int, size: int) -> int:
    count = header.get("count")
    if not isinstance(count, int) or count < 1 or size != offset + 8 * count:
        raise DataError(
            f"the order file {path} is damaged: it has {size} bytes",
            f"Its header speaks of {count} ids of 8 bytes after {offset} bytes of header",
            _MAKE_AGAIN,
        )
    return count


def _check_target(path: Path, header: dict[str, Any], target: OrderTarget) -> None:
    said = header.get("target")
    different = target.difference(said if isinstance(said, dict) else {})
    if different is not None:
        name, found, wanted = different
        raise DataError(
            f"the order file {path} was made for other data: its {name} is {found}",
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


def _outside(path: Path, sample_id: int, place: int, target: OrderTarget) -> DataError:
    return DataError(
        f"the order {path} holds sample id {sample_id} at place {place}",
        f"The data has samples 0 to {target.num_samples - 1}",
        _MAKE_AGAIN,
    )


def _first_place(ids: Int64Array, sample_id: int) -> int:
    """Where an id that is there stands first."""
    for first in range(0, len(ids), _BLOCK):
        here = np.flatnonzero(ids[first : first + _BLOCK] == sample_id)
        if here.size:
            return first + int(here[0])
    raise ValueError(f"{sample_id} is not there")


def _sha256(ids: Int64Array) -> str:
    return hashlib.sha256(ids.data.cast("B")).hexdigest()
