"""From --data-path and its relatives to the training, validation and test views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_ext import log
from megatron_ext.data.blend import BlendView, Mixture, normalize, parse_blend
from megatron_ext.data.blend_schedule import parse_schedule, scheduled_mixture
from megatron_ext.data.document_samples import DocumentView
from megatron_ext.data.greedy_mixture import GreedyMixture
from megatron_ext.data.joined_view import JoinedView
from megatron_ext.data.megatron_order import MegatronOrder, MegatronView
from megatron_ext.data.order import PermutedOrder, SequentialOrder, order_key
from megatron_ext.data.order_file import FileOrder
from megatron_ext.data.split import SPLIT_NAMES, Span, span_of, split_bounds
from megatron_ext.data.spread_mixture import EpochMixture, WeightedMixture
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.views import OrderedView, View, WindowView
from megatron_ext.errors import DataError

if TYPE_CHECKING:
    from megatron_ext.config import DataConfig
    from megatron_ext.tokenizer.base import Tokenizer

__all__ = ["DatasetRequest", "Datasets", "View", "build_datasets"]

# megatron-core builds this share more of each dataset of a weighted blend than it plans to draw
# (BlendedMegatronDatasetConfig.mid_level_dataset_surplus); the number decides its count of epochs.
_MEGATRON_SURPLUS = 0.005


@dataclass(frozen=True)
class DatasetRequest:
    """What a run needs of its data.

    Attributes:
        data: paths, split and order.
        tokenizer: the one the run uses; the data must have been made with it.
        seq_length: tokens in a sample.
        num_samples: samples wanted for training, validation and test; 0 for a part that is not needed.
        seed: decides the permuted and the megatron order.
    """

    data: DataConfig
    tokenizer: Tokenizer
    seq_length: int
    num_samples: tuple[int, int, int]
    seed: int


@dataclass(frozen=True)
class Datasets:
    """The views of a run; None for a part that is not needed or has no data of its own."""

    train: View | None
    valid: View | None
    test: View | None


@dataclass(frozen=True)
class _Part:
    """One of training, validation, test: where it comes from and how much of it is wanted."""

    index: int
    flag: str
    prefixes: list[str]
    weights: list[float] | None
    bounds: tuple[float, float]
    num_samples: int
    own_paths: bool

    @property
    def name(self) -> str:
        return SPLIT_NAMES[self.index]


def build_datasets(request: DatasetRequest) -> Datasets:
    """The three views, opened and checked; every rank calls it alone and gets the same.

    Raises:
        DataError: a dataset is missing, damaged, made with another tokenizer or a larger vocabulary, too small for
            what is wanted of it, or an order file does not belong to it.
    """
    builder = _Builder(request)
    views = [builder.build(part) if part is not None else None for part in _parts(request)]
    for name, view in zip(SPLIT_NAMES, views, strict=True):
        if view is not None:
            log.info(
                f"{name}: {view.num_tokens} tokens, {len(view)} samples of {view.seq_length} tokens, "
                f"{view.remainder_tokens} tokens remain"
            )
    return Datasets(*views)


class _Builder:
    """Opens each dataset once and makes the views of all parts."""

    def __init__(self, request: DatasetRequest) -> None:
        self._request = request
        self._stores: dict[str, IndexedDataset] = {}

    def build(self, part: _Part) -> View:
        order = self._request.data.dataset_order
        if order == "megatron":
            return self._build_megatron(part)
        if order not in ("permuted", "sequential") and part.name == "train":
            return self._ordered_by_file(part)
        views = [self._ordered(part, place) for place in range(len(part.prefixes))]
        mixture = self._mixture(part, [len(view) for view in views])
        return views[0] if len(views) == 1 else BlendView(views, mixture)

    def _mixture(self, part: _Part, sizes: list[int]) -> Mixture:
        """How often which dataset is drawn; weights move in training alone."""
        data, trains = self._request.data, part.name == "train"
        if data.blend_schedule and trains:
            _refuse_useless_schedule(part)
            return scheduled_mixture(parse_schedule(data.blend_schedule, len(sizes)), self._request.seq_length)
        if part.weights is not None:
            return WeightedMixture(part.weights)
        return WeightedMixture(sizes) if data.blend_reweight_interval is not None and trains else EpochMixture(sizes)

    def _ordered(self, part: _Part, place: int) -> View:
        request, prefix = self._request, part.prefixes[place]
        store = self._open(prefix)
        view = self._samples(store, self._span(part, store))
        if request.data.dataset_order == "sequential":
            return view.ordered_by(SequentialOrder(len(view)))
        return view.ordered_by(PermutedOrder(len(view), order_key(request.seed, part.name, place, store.identity)))

    def _ordered_by_file(self, part: _Part) -> View:
        """All datasets of the training part under one order file."""
        data = self._request.data
        if len(part.prefixes) > 1 and part.weights is not None:
            raise DataError(
                f"weights of datasets are given beside --dataset-order {data.dataset_order}",
                "An order file says which sample comes when, and with it the share of every dataset",
                f"Give {part.flag} {' '.join(part.prefixes)} without weights; "
                "tools/build_curriculum.py --stages makes an order with the shares you want",
            )
        views = [self._samples(store, self._span(part, store)) for store in map(self._open, part.prefixes)]
        view = views[0] if len(views) == 1 else JoinedView(views)
        return view.ordered_by(FileOrder(Path(data.dataset_order), view.target))

    def _samples(self, store: IndexedDataset, span: Span) -> OrderedView:
        data, seq_length, tokenizer = self._request.data, self._request.seq_length, self._request.tokenizer
        unchecked = self._unchecked_vocab_size(store)
        pad_id = tokenizer.eod_id if tokenizer.pad_id is None else tokenizer.pad_id
        if data.dataset_packing == "documents":
            return DocumentView(store, span, seq_length, pad_id, unchecked)
        return WindowView(store, span, seq_length, unchecked, pad_id if data.pad_last_sample else None)

    def _build_megatron(self, part: _Part) -> View:
        """The cases of megatron-core 0.16.1's BlendedMegatronDatasetBuilder, with its numbers of samples."""
        single = len(part.prefixes) == 1 and (part.weights is None or part.own_paths)
        if single:
            return self._megatron_view(part, 0, part.num_samples)
        if part.weights is None:
            views = [self._megatron_view(part, place, None) for place in range(len(part.prefixes))]
            sizes = [len(view) for view in views]
            return BlendView(views, GreedyMixture(normalize(sizes)), min(part.num_samples, sum(sizes)))
        once = normalize(part.weights).tolist()
        targets = [math.ceil(part.num_samples * weight) for weight in once]
        views = [
            self._megatron_view(part, place, math.ceil(target * (1 + _MEGATRON_SURPLUS)))
            for place, target in enumerate(targets)
        ]
        return BlendView(views, GreedyMixture(_twice_normalized(part.weights)), sum(targets))

    def _megatron_view(self, part: _Part, place: int, num_samples: int | None) -> View:
        request = self._request
        store = self._open(part.prefixes[place])
        cache = request.data.data_cache_path
        order = MegatronOrder(request.seed, request.seq_length, num_samples, Path(cache) if cache else None)
        return MegatronView(store, self._span(part, store), order, self._unchecked_vocab_size(store))

    def _open(self, prefix: str) -> IndexedDataset:
        if prefix not in self._stores:
            self._stores[prefix] = IndexedDataset(prefix)
            _check_tokenizer(self._stores[prefix], self._request.tokenizer)
        return self._stores[prefix]

    def _span(self, part: _Part, store: IndexedDataset) -> Span:
        span = span_of(part.bounds, store.num_sequences)
        if span.size == 0:
            cause = "it is empty" if part.own_paths else f'--split "{self._request.data.split}" leaves none of them'
            raise DataError(
                f"{store.prefix} has no documents for {part.name}: of its {store.num_sequences} sequences, {cause}",
                f"{part.num_samples} samples are wanted",
                "Use more data, or another --split; a share of 0 for validation or test does without it",
            )
        return span

    def _unchecked_vocab_size(self, store: IndexedDataset) -> int | None:
        return self._request.tokenizer.vocab_size if store.manifest is None else None


def _parts(request: DatasetRequest) -> list[_Part | None]:
    data = request.data
    own = (data.train_data_path, data.valid_data_path, data.test_data_path)
    if data.data_path and any(own):
        raise DataError(
            "--data-path and --train-data-path, --valid-data-path, --test-data-path are given together",
            "One dataset is cut by --split, or each part has its own",
            "Give one kind only",
        )
    if not data.data_path and not own[0]:
        raise DataError("there is no training data", fix="Give --data-path, or --train-data-path")
    bounds = split_bounds(data.split) if data.data_path else [(0.0, 1.0) if path else None for path in own]
    if bounds[0] is None and request.num_samples[0]:
        raise DataError(f'--split "{data.split}" leaves nothing to train on', "The first number is the training share")
    parts: list[_Part | None] = []
    for index, (path, bound) in enumerate(zip(own, bounds, strict=True)):
        flag = "--data-path" if data.data_path else f"--{SPLIT_NAMES[index]}-data-path"
        words: Sequence[str] | None = data.data_path or path
        if bound is None or not words or not request.num_samples[index]:
            parts.append(None)
            continue
        prefixes, weights = parse_blend(words, flag)
        parts.append(_Part(index, flag, prefixes, weights, bound, request.num_samples[index], not data.data_path))
    return parts


def _refuse_useless_schedule(part: _Part) -> None:
    if part.weights is not None:
        raise DataError(
            f"{part.flag} and --blend-schedule both give weights of the datasets",
            f"A blend with moving weights has prefixes alone: {part.flag} {' '.join(part.prefixes)}",
        )
    if len(part.prefixes) == 1:
        raise DataError(
            "--blend-schedule moves the weights of several datasets", f"{part.flag} gives one, {part.prefixes[0]}"
        )


def _twice_normalized(weights: Sequence[float]) -> np.ndarray:
    """megatron-core divides by the sum twice; the second time can change the last bit, and with it a tie."""
    return normalize(normalize(weights).tolist())


def _check_tokenizer(store: IndexedDataset, tokenizer: Tokenizer) -> None:
    manifest = store.manifest
    if manifest is None:
        log.warn_once(
            f"{store.prefix} has no manifest (tools/preprocess_data.py writes one): it cannot be checked that the "
            "data was made with this tokenizer; the ids of every sample are checked against its vocabulary"
        )
        return
    made_with = manifest.tokenizer
    if made_with.fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{store.prefix} was made with another tokenizer: {made_with.type} {made_with.model or ''} with "
            f"{made_with.vocab_size} ids, sha256 {made_with.fingerprint[:12]}...",
            f"--tokenizer-model of this run has {tokenizer.vocab_size} ids, sha256 {tokenizer.fingerprint[:12]}...",
            "Use the tokenizer the data was made with, or preprocess the text again",
        )
    if manifest.largest_id >= tokenizer.vocab_size:
        raise DataError(
            f"{store.prefix} holds token id {manifest.largest_id}",
            f"The tokenizer of this run has ids 0 to {tokenizer.vocab_size - 1}",
            "Use the tokenizer the data was made with",
        )
