"""Order files: sample ids in the order they are to be trained on, made for one dataset, mapped and never loaded.

Format: one line of JSON, padded with spaces so that it has a multiple of 64 bytes with its newline; then `count`
sample ids as little-endian int64. The header tells the format and its version, the count, the sha256 of the ids,
what the order was made for (dataset, split, sequence length) and how.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

FORMAT = "megatron_ext sample order"
FORMAT_VERSION = 1
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 1 << 20
_BLOCK = 1 << 20
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
        packing: what a sample is, the value of --dataset-packing; a file that does not say so is about windows.
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
    _check_range(ids, 0, target.num_samples, path)
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "count": len(ids),
        "dtype": "int64 little-endian",
        "sha256": hashlib.sha256(ids.data.cast("B")).hexdigest(),
        "target": dataclasses.asdict(target),
        "made_by": dict(made_by),
    }
    line = json.dumps(header, ensure_ascii=True).encode("ascii")
    file = PendingFile(path)
    try:
        file.write(line + b" " * (-(len(line) + 1) % _ALIGNMENT) + b"\n")
        file.write(ids.data.cast("B"))
        file.finish()
        file.publish()
    finally:
        file.discard()


class FileOrder:
    """The order of a file; after its last id it begins again.

    Opening reads the ids once, in blocks, to check the checksum and the range.

    Args:
        path: the order file.
        target: the data it is to be used with.

    Raises:
        DataError: the file is missing, damaged, or made for other data.
    """

    def __init__(self, path: Path, target: OrderTarget) -> None:
        header, offset = _read_header(path)
        self._ids = _map_ids(path, header, offset)
        _check_target(path, header, target)
        digest = hashlib.sha256()
        for first in range(0, len(self._ids), _BLOCK):
            block = self._ids[first : first + _BLOCK]
            digest.update(np.ascontiguousarray(block).data.cast("B"))
            _check_range(block, first, target.num_samples, path)
        if digest.hexdigest() != header.get("sha256"):
            raise DataError(f"the order file {path} is damaged: its checksum does not match", fix=_MAKE_AGAIN)

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
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT or not line.endswith(b"\n"):
        raise DataError(f"{path} is not an order file: it does not begin with its header", fix=_MAKE_AGAIN)
    if header.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"the order file {path} has format version {header.get('format_version')}",
            f"This program knows version {FORMAT_VERSION}",
            _MAKE_AGAIN,
        )
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
        wanted, default = getattr(target, field.name), None if field.default is dataclasses.MISSING else field.default
        found = said.get(field.name, default)
        if found != wanted:
            raise DataError(
                f"the order file {path} was made for other data: its {field.name} is {found}",
                f"This run's is {wanted}",
                _MAKE_AGAIN + ", or give the --data-path, --split, --seq-length and --dataset-packing it was made for",
            )


def _check_range(ids: Int64Array, first: int, num_samples: int, path: Path) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= num_samples))
    if wrong.size:
        raise DataError(
            f"the order {path} holds sample id {ids[wrong[0]]} at place {first + int(wrong[0])}",
            f"The data has samples 0 to {num_samples - 1}",
            _MAKE_AGAIN,
        )
