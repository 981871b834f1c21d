"""megatron-core's GPTDataset, sample for sample: shuffled documents, then windows, then shuffled windows."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ext import log, native
from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.views import RowsToFill, TokenRange, View, check_extent, require_existing, require_one_sample
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

_Indices = tuple[NDArray, NDArray, NDArray]
_LARGEST_INT32 = 2**31 - 1
_SEPARATE_EPOCH_BELOW = 0.80  # share of an epoch's samples; Source: megatron-core 0.16.1, gpt_dataset.py


@dataclass(frozen=True)
class MegatronOrder:
    """What decides megatron-core's order of one dataset.

    Attributes:
        seed: --seed.
        seq_length: tokens in a sample.
        num_samples: samples asked for, which decides the number of epochs; None for one epoch.
        cache_folder: where the arrays are kept between runs, or None.
    """

    seed: int
    seq_length: int
    num_samples: int | None
    cache_folder: Path | None = None


class MegatronView(View):
    """One split of one dataset as megatron-core 0.16.1's GPTDataset gives it, token by token.

    All epochs are laid out at once, so the order depends on the number of samples asked for. Needs 4 bytes per document
    and epoch and 12 per sample, in memory or, with a cache folder, in files that are mapped.

    Args:
        store: the dataset.
        span: the sequences of this split.
        order: what decides the order.
        max_vocab_size: as in WindowView.

    Raises:
        DataError: the split has no complete sample.

    Source: megatron-core 0.16.1, datasets/gpt_dataset.py, _build_document_sample_shuffle_indices.
    """

    def __init__(
        self, store: IndexedDataset, span: Span, order: MegatronOrder, max_vocab_size: int | None = None
    ) -> None:
        self._store = store
        self.stores, self.source_names = (store,), (store.prefix,)
        self._max_vocab_size = max_vocab_size
        self.has_loss_mask = store.loss_mask is not None
        self.seq_length = order.seq_length
        self.num_tokens = store.token_offset(span.last) - store.token_offset(span.first)
        require_one_sample(store.prefix, self.num_tokens, self.seq_length)
        self.remainder_tokens = self.num_tokens - (self.num_tokens - 1) // self.seq_length * self.seq_length
        self._documents, self._shuffle, self._index = _cached_indices(store, span, order, self.num_tokens)

    def __len__(self) -> int:
        """Samples laid out: all epochs that were asked for."""
        return len(self._shuffle)

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Places themselves, int64 `[count]`; beyond the samples laid out they begin again, with one warning."""
        if start + count > len(self):
            log.warn_once(
                f"{self._store.prefix}: megatron's order was laid out for {len(self)} samples; more are asked for and "
                "it begins again"
            )
        return np.arange(start, start + count, dtype=np.int64) % len(self)

    def __getitem__(self, sample_id: int) -> Int64Array:
        """The tokens of one sample, int64 `[seq_length + 1]`."""
        return self.read(np.array([sample_id], np.int64))[0][0]

    def loss_mask(self, sample_id: int) -> NDArray[np.uint8] | None:
        """What is learned at each token of one sample, uint8 `[seq_length + 1]`; None when all of them are."""
        mask = self.read(np.array([sample_id], np.int64))[1]
        return None if mask is None else mask[0]

    def token_ranges(self, sample_id: int) -> list[TokenRange]:
        """Where the tokens of one sample stand in the data, document after document."""
        place, offset = self._index[int(self._shuffle[sample_id])].tolist()
        missing, ranges = self.seq_length + 1, []
        while missing:
            begins, ends = self._store.sequence_bounds(self._documents[place : place + 1].astype(np.int64))
            begin, end = int(begins[0]) + offset, int(ends[0])
            taken = min(end - begin, missing)
            if taken:
                ranges.append(TokenRange(self._store, begin, begin + taken))
            missing, offset, place = missing - taken, 0, place + 1
        return ranges

    def read_into(self, sample_ids: Int64Array, batch: RowsToFill) -> None:
        """Write samples to chosen rows of a batch, all of them in one native call.

        Raises:
            DataError: the index is damaged where it is read, or an id lies outside the vocabulary.
        """
        require_existing(sample_ids, len(self))
        store = self._store
        try:
            extent = native.gather_documents(
                (store.tokens, store.loss_mask),
                (store.lengths, store.pointers, self._documents, self._index),
                self._shuffle[sample_ids].astype(np.int64),
                (batch.rows, batch.tokens, batch.mask),
                self._max_vocab_size is not None,
            )
        except IndexError:  # each document is compared with the next one while it is read
            raise store.damaged() from None
        check_extent(extent, self._max_vocab_size, store.prefix)


def build_indices(span: Span, order: MegatronOrder, tokens_per_epoch: int) -> tuple[NDArray, NDArray]:
    """Document order int32 or int64 `[documents * epochs]` and sample order uint32 or int64 `[samples]`.

    Documents are int64 from 2^31 on, where megatron-core's int32 wraps.

    Args:
        span: the sequences of this split.
        order: what decides the order.
        tokens_per_epoch: tokens of the split.

    Source: megatron-core 0.16.1, datasets/gpt_dataset.py; one RandomState drives both shuffles, in this order.
    """
    seq_length, wanted = order.seq_length, order.num_samples
    num_epochs = 1 if wanted is None else max(1, -(-(wanted * seq_length + 1) // tokens_per_epoch))
    num_samples = (num_epochs * tokens_per_epoch - 1) // seq_length
    separate = None
    if num_epochs > 1 and wanted is not None:
        before_last = ((num_epochs - 1) * tokens_per_epoch - 1) // seq_length
        per_epoch = (tokens_per_epoch - 1) // seq_length
        if wanted - before_last < int(_SEPARATE_EPOCH_BELOW * per_epoch):
            separate = before_last
    random = np.random.RandomState(order.seed)
    if separate is None:
        documents = _shuffled_documents(span, num_epochs, random)
        return documents, _shuffled_range(0, num_samples, num_samples, random)
    documents = np.concatenate(
        [_shuffled_documents(span, num_epochs - 1, random), _shuffled_documents(span, 1, random)]
    )
    first = _shuffled_range(0, separate, num_samples, random)
    if separate == num_samples:
        return documents, first
    return documents, np.concatenate([first, _shuffled_range(separate, num_samples, num_samples, random)])


def _shuffled_documents(span: Span, num_epochs: int, random: np.random.RandomState) -> NDArray:
    dtype = np.int32 if span.last <= _LARGEST_INT32 else np.int64
    documents = np.tile(np.arange(span.first, span.last, dtype=dtype), num_epochs)
    random.shuffle(documents)
    return documents


def _shuffled_range(first: int, last: int, total: int, random: np.random.RandomState) -> NDArray:
    dtype = np.uint32 if total < np.iinfo(np.uint32).max - 1 else np.int64
    places = np.arange(first, last, dtype=dtype)
    random.shuffle(places)
    return places


def _all_indices(store: IndexedDataset, span: Span, order: MegatronOrder, tokens_per_epoch: int) -> _Indices:
    """What `build_indices` gives, and where samples begin in the document order, int32 or int64 `[samples + 1, 2]`."""
    store.check_structure()
    documents, samples = build_indices(span, order, tokens_per_epoch)
    wide = len(documents) > _LARGEST_INT32
    return documents, samples, native.sample_index(store.lengths, documents, order.seq_length, wide=wide)


def _cached_indices(store: IndexedDataset, span: Span, order: MegatronOrder, tokens_per_epoch: int) -> _Indices:
    if order.cache_folder is None:
        return _all_indices(store, span, order, tokens_per_epoch)
    named = {
        "dataset": store.identity,
        "span": [span.first, span.last],
        "seed": order.seed,
        "seq_length": order.seq_length,
        "num_samples": order.num_samples,
        "numpy": np.__version__,
    }
    name = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]
    paths = [order.cache_folder / f"{name}-{part}.npy" for part in ("documents", "samples", "starts")]
    if not all(path.is_file() for path in paths):
        arrays = _all_indices(store, span, order, tokens_per_epoch)
        _save(order.cache_folder, dict(zip(paths, arrays, strict=True)))
        return arrays
    try:
        documents, samples, starts = (np.load(path, mmap_mode="r", allow_pickle=False) for path in paths)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the index cache {paths[0]} is damaged ({error})", fix="Remove it; it is built again"
        ) from None
    return documents, samples, starts


def _save(folder: Path, arrays: dict[Path, NDArray]) -> None:
    """Publish by rename; another rank that does the same at the same time writes the same bytes or comes later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--data-cache-path {folder} cannot be made ({error.strerror})") from None
    for path, array in arrays.items():
        try:
            file = PendingFile(path)
        except DataError:
            continue  # another rank is writing this very file
        try:
            np.save(_Sink(file), array, allow_pickle=False)
            file.finish()
            file.publish()
        finally:
            file.discard()


class _Sink:
    """What numpy.save needs of a file, on top of a PendingFile."""

    def __init__(self, file: PendingFile) -> None:
        self._file = file

    def write(self, content: bytes) -> int:
        self._file.write(content)
        return len(content)
