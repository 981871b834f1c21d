"""Score files: one number per document of a dataset, higher is harder; sidecars of the dataset, mapped, never loaded.

Format of `PREFIX.NAME.scores`: one line of JSON, padded with spaces so that it has a multiple of 64 bytes with its
newline; then a little-endian float32 for each document. The header tells the format and its version, the metric, which
data the scores are of, how they were made, the sha256 of the values, and last the sha256 of all the header before that.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_ext.atomic import fsync_path
from megatron_ext.data.preprocessing.output_file import open_locked, writing_failed
from megatron_ext.data.preprocessing.pending import BEGIN_ANEW, partial_path
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError

FORMAT = "megatron_ext document scores"
FORMAT_VERSION = 1
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 1 << 20
_BLOCK = 1 << 20
_ITEM_BYTES = 4
_NAME = re.compile(r"\w[\w-]{0,99}")
_NO_SHA256 = "0" * 64
_MAKE_AGAIN = "Make it again with tools/score_difficulty.py"


def score_path(prefix: str | Path, name: str) -> Path:
    """The file with the scores of a dataset under one metric.

    Raises:
        DataError: the name cannot be part of a file's name.
    """
    if not _NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot name scores", "A name has 1 to 100 letters, digits, _ and -, and does not begin with -"
        )
    return Path(f"{prefix}.{name}.scores")


def score_names(prefix: str | Path) -> list[str]:
    """Names of the score files that lie beside a dataset, sorted."""
    names = [path[len(f"{prefix}.") : -len(".scores")] for path in glob.glob(f"{glob.escape(str(prefix))}.*.scores")]
    return sorted(name for name in names if _NAME.fullmatch(name))


@dataclass(frozen=True)
class ScoreTarget:
    """What scores are of.

    Attributes:
        prefix: prefix of the dataset.
        name: name of the metric.
        dataset: identity of the dataset (IndexedDataset.identity).
        documents: its documents, at least 1.
    """

    prefix: str
    name: str
    dataset: str
    documents: int

    @classmethod
    def of(cls, dataset: IndexedDataset, name: str) -> ScoreTarget:
        """The target for an opened dataset.

        Raises:
            DataError: the dataset has no document, or the name cannot be used.
        """
        score_path(dataset.prefix, name)
        if not dataset.num_documents:
            raise DataError(f"{dataset.prefix} has no documents to score")
        return cls(dataset.prefix, name, dataset.identity, dataset.num_documents)

    @property
    def path(self) -> Path:
        """The file of these scores."""
        return score_path(self.prefix, self.name)


@dataclass(frozen=True)
class ScoreProgress:
    """How many scores of a file are on disk, and the sha256 of their bytes: where a killed run is continued."""

    documents: int
    sha256: str


class ScoreWriter:
    """Writes `PREFIX.NAME.scores.partial` score by score and gives it its name in `publish` (law L7).

    The partial file is locked, so two runs cannot write the same scores.

    Args:
        target: what the scores are of.
        made_by: how they come about, plain JSON values; known before the first score.
        resume: go on behind the scores that a killed run left in its partial file.

    Raises:
        DataError: the file cannot be written, another run writes it, or what the killed run left is not as it said.
    """

    def __init__(self, target: ScoreTarget, made_by: Mapping[str, Any], resume: ScoreProgress | None = None) -> None:
        self._target, self._made_by = target, dict(made_by)
        self._header_bytes = len(_header(self._content(_NO_SHA256)))
        self._hash = hashlib.sha256()
        self.documents = 0
        self._path, self._partial = target.path, partial_path(target.path)
        try:
            descriptor = open_locked(self._partial, self._path, create=resume is None or not resume.documents)
        except FileNotFoundError:
            raise DataError(f"there is no {self._partial} to go on with", fix=BEGIN_ANEW) from None
        self._stream = os.fdopen(descriptor, "r+b", buffering=_BLOCK)
        try:
            if resume is not None:
                self._take_over(resume)
            os.ftruncate(descriptor, self._end)
            self._stream.seek(self._end)
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise writing_failed(self._path, error) from None
            raise

    @property
    def progress(self) -> ScoreProgress:
        """What `resume` needs to go on from here, once `sync` has been called."""
        return ScoreProgress(self.documents, self._hash.hexdigest())

    def append(self, scores: ArrayLike) -> None:
        """Add the scores of the next documents, `[n]` numbers.

        Raises:
            DataError: a score is NaN or infinite as float32, there are more scores than documents, or the disk is full.
        """
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(scores, dtype="<f4")
        _check_finite(values, self.documents, self._target.name)
        if self.documents + len(values) > self._target.documents:
            raise DataError(
                f"more than {self._target.documents} scores were given for {self._path}",
                f"{self._target.prefix} has {self._target.documents} documents",
            )
        content = values.tobytes()
        try:
            self._stream.write(content)
        except OSError as error:
            raise writing_failed(self._path, error) from None
        self._hash.update(content)
        self.documents += len(values)

    def sync(self) -> None:
        """Force everything written so far to disk.

        Raises:
            DataError: the disk is full or fails.
        """
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise writing_failed(self._path, error) from None

    def publish(self) -> None:
        """Write the header and give the file its name, on disk when this returns.

        Raises:
            DataError: documents are without a score, or the disk is full or fails.
        """
        if self.documents != self._target.documents:
            raise DataError(
                f"{self._path} would miss documents: it has {self.documents} scores",
                f"{self._target.prefix} has {self._target.documents} documents",
            )
        try:
            self._stream.seek(0)
            self._stream.write(_header(self._content(self._hash.hexdigest())))
        except OSError as error:
            raise writing_failed(self._path, error) from None
        self.sync()
        os.replace(self._partial, self._path)
        fsync_path(self._path.parent)
        self._close()

    def keep(self) -> None:
        """Close the partial file and let it lie, for `resume`; harmless after `publish` and `discard`."""
        self._close()

    def discard(self) -> None:
        """Remove the partial file; harmless after `publish` and `keep`."""
        if not self._stream.closed:
            self._partial.unlink(missing_ok=True)
            self._close()

    @property
    def _end(self) -> int:
        return self._header_bytes + _ITEM_BYTES * self.documents

    def _content(self, sha256: str) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "metric": self._target.name,
            "dataset": self._target.dataset,
            "documents": self._target.documents,
            "dtype": "float32 little-endian",
            "made_by": self._made_by,
            "sha256": sha256,
        }

    def _take_over(self, resume: ScoreProgress) -> None:
        self._stream.seek(self._header_bytes)
        left = _ITEM_BYTES * resume.documents
        while left and (block := self._stream.read(min(left, _BLOCK))):
            self._hash.update(block)
            left -= len(block)
        if left or self._hash.hexdigest() != resume.sha256:
            raise DataError(
                f"{self._partial} is damaged: its first {resume.documents} scores are not those that were written",
                fix=BEGIN_ANEW,
            )
        self.documents = resume.documents

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the last flush of what nobody will read
            self._stream.close()


def write_scores(prefix: str | Path, name: str, blocks: Iterable[ArrayLike], made_by: Mapping[str, Any]) -> Path:
    """Write and publish the scores of all documents of a dataset.

    Args:
        prefix: prefix of the dataset.
        name: name of the metric.
        blocks: scores of consecutive documents, each `[n]`; together one for each document, higher is harder.
        made_by: how they came about, plain JSON values, for the record.

    Returns:
        The file, replaced in one step if it existed.

    Raises:
        DataError: a score is NaN or infinite, documents are missed, or the file cannot be written.
    """
    target = ScoreTarget.of(IndexedDataset(prefix), name)
    writer = ScoreWriter(target, made_by)
    try:
        for block in blocks:
            writer.append(block)
        writer.publish()
    finally:
        writer.discard()
    return target.path


class ScoreFile:
    """The scores of a dataset under one metric; opening reads them once, in blocks, to check every byte.

    Args:
        prefix: prefix of the dataset.
        name: name of the metric.
        dataset: the dataset, where it is open already.

    Attributes:
        values: float32 `[documents]`, memory mapped and read only; higher is harder, all finite.
        header: what the file says of itself; `header["made_by"]` tells how the scores were made.

    Raises:
        DataError: the file is missing, truncated, damaged, of other data or another metric, or holds NaN.
    """

    def __init__(self, prefix: str | Path, name: str, dataset: IndexedDataset | None = None) -> None:
        path = score_path(prefix, name)
        self.header, offset = _read_header(path)
        target = ScoreTarget.of(dataset or IndexedDataset(prefix), name)
        _check_target(path, self.header, target)
        size, wanted = path.stat().st_size, offset + _ITEM_BYTES * target.documents
        if size != wanted:
            raise DataError(
                f"the score file {path} is damaged: it has {size} bytes",
                f"Its header speaks of {target.documents} scores of 4 bytes after {offset} bytes of header",
                _MAKE_AGAIN,
            )
        self.values: NDArray[np.float32] = np.memmap(path, "<f4", "r", offset, (target.documents,)).view(np.ndarray)
        digest = hashlib.sha256()
        for first in range(0, target.documents, _BLOCK):
            block = np.ascontiguousarray(self.values[first : first + _BLOCK])
            digest.update(block.data.cast("B"))
            _check_finite(block, first, str(path))
        if digest.hexdigest() != self.header["sha256"]:
            raise DataError(f"the score file {path} is damaged: its checksum does not match", fix=_MAKE_AGAIN)


def _header(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, allow_nan=False)
    own = hashlib.sha256(text.encode("ascii")).hexdigest()
    line = json.dumps({**content, "header_sha256": own}, allow_nan=False).encode("ascii")
    return line + b" " * (-(len(line) + 1) % _ALIGNMENT) + b"\n"


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as stream:
            line = stream.readline(_MAX_HEADER_BYTES)
    except FileNotFoundError:
        raise DataError(f"there are no scores {path}", fix=_MAKE_AGAIN.replace(" it again", " them")) from None
    except OSError as error:
        raise DataError(f"the score file {path} cannot be read ({error.strerror})", fix=_MAKE_AGAIN) from None
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{path} is not a score file: it does not begin with its header", fix=_MAKE_AGAIN)
    if header.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"the score file {path} has format version {header.get('format_version')}",
            f"This program knows version {FORMAT_VERSION}",
            _MAKE_AGAIN,
        )
    try:
        same = _header({name: value for name, value in header.items() if name != "header_sha256"}) == line
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise DataError(f"the score file {path} is damaged: a byte of its header was changed", fix=_MAKE_AGAIN)
    return header, len(line)


def _check_target(path: Path, header: Mapping[str, Any], target: ScoreTarget) -> None:
    for field, wanted in (
        ("metric", target.name),
        ("documents", target.documents),
        ("dataset", target.dataset),
    ):
        if header.get(field) != wanted:
            raise DataError(
                f"the score file {path} was made for other data: its {field} is {header.get(field)}",
                f"That of {target.prefix} is {wanted}",
                _MAKE_AGAIN,
            )


def _check_finite(values: NDArray[np.float32], first: int, where: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(values))
    if wrong.size:
        raise DataError(
            f"the score of document {first + int(wrong[0])} in {where} is {values[wrong[0]]}",
            "Every score is a finite float32",
            "Mend what the scores are made from, and make them again",
        )
