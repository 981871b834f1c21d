"""From the scores of the documents of datasets to an order file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_ext import __version__
from megatron_ext.data.curriculum.bucket_files import BucketFile
from megatron_ext.data.curriculum.bucket_sort import placed, refuse_too_many, sorted_apart, sorted_samples
from megatron_ext.data.curriculum.difficulty import sample_difficulties
from megatron_ext.data.curriculum.orders import CurriculumOrder, SortedOrder
from megatron_ext.data.curriculum.sample_space import SampleSpace
from megatron_ext.data.curriculum.score_file import ScoreFile
from megatron_ext.data.curriculum.settings import CurriculumSettings
from megatron_ext.data.curriculum.sort_keys import KeyFile, difficulties_of, sortable_keys
from megatron_ext.data.joined_view import joined_target
from megatron_ext.data.order_file import OrderFileWriter, OrderTarget
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.native_numpy import Int64Array

_PLACES_AT_ONCE = 1 << 20
_TRACED = 400_000


@dataclass(frozen=True)
class Trace:
    """Samples at evenly spaced places of an order, all of them where it is short.

    Attributes:
        places: int64 `[k]`, rising.
        difficulties: float32 `[k]`.
        sources: which of `source_names` each sample comes from, int64 `[k]`.
        source_names: what the datasets are called.
        num_places: places in the order.
    """

    places: Int64Array
    difficulties: NDArray[np.float32]
    sources: Int64Array
    source_names: tuple[str, ...]
    num_places: int


def build_curriculum(
    datasets: Sequence[tuple[IndexedDataset, OrderTarget]], score_name: str, settings: CurriculumSettings, output: Path
) -> Trace:
    """Write the order file of a training part.

    Takes 12 bytes per sample of temporary space beside the output, 20 for every method but `sorted`, and up to 24
    where stages name datasets.

    Args:
        datasets: each with what a sample of it is: the `target` of the view that training will use.
        score_name: name of the score file beside each dataset.
        settings: how the samples are ordered.
        output: the order file; replaced in one step if it exists.

    Returns:
        What the picture of it is drawn from.

    Raises:
        MegatronExtError: the scores are of other data or damaged, the method asks for what there is not, or the disk
            is full or fails.
    """
    scores = [ScoreFile(store.prefix, score_name, store) for store, _ in datasets]
    target = joined_target([target for _, target in datasets])
    refuse_too_many(target.num_samples)
    names, sizes = [Path(store.prefix).name for store, _ in datasets], [target.num_samples for _, target in datasets]
    space = SampleSpace(tuple(names), tuple(sizes), target.seq_length)
    order = settings.order(space)
    with KeyFile(output.parent) as keys:
        for (store, own_target), own_scores in zip(datasets, scores, strict=True):
            for difficulties in sample_difficulties(store, own_target, own_scores.values):
                keys.append(sortable_keys(difficulties, settings.reverse))
        stride = max(1, order.num_places // _TRACED)
        seen: list[Int64Array] = []
        promise = "permutation" if order.num_places == target.num_samples else "distinct"
        starts = space.starts if settings.ranks_datasets_apart else None
        with OrderFileWriter(output, order.num_places, target, made_by(names, scores, settings), promise) as writer:
            place = 0
            for samples in ordered_samples(keys, order, output.parent, starts):
                writer.append(samples)
                seen.append(samples[-place % stride :: stride].copy())
                place += len(samples)
            writer.publish()
        traced = np.concatenate(seen)
        difficulties = difficulties_of(keys.of(traced), settings.reverse)
    places = np.arange(0, order.num_places, stride, dtype=np.int64)
    return Trace(places, difficulties, space.datasets_of(traced), space.names, order.num_places)


def made_by(names: Sequence[str], scores: Sequence[ScoreFile], settings: CurriculumSettings) -> dict[str, Any]:
    """What the header of the order file says of its making."""
    told = [{name: file.header.get(name) for name in ("metric", "sha256", "made_by")} for file in scores]
    of_what: dict[str, Any] = {"score": told[0]}
    if len(told) > 1:
        of_what = {"datasets": [{"name": name, "score": score} for name, score in zip(names, told, strict=True)]}
    return {"tool": "build_curriculum", "tool_version": __version__, **of_what, **settings.described()}


def ordered_samples(
    keys: KeyFile, order: CurriculumOrder, folder: Path, starts: Sequence[int] | None = None
) -> Iterator[Int64Array]:
    """Samples in the order of their places, int64 `[n]`, piece after piece.

    Args:
        keys: a key for each sample; the smallest is the easiest.
        order: the place of each rank.
        folder: where temporary files lie.
        starts: the first sample of each dataset and the number of all samples, where ranks are those inside each
            dataset, one dataset after the other; None for ranks among all samples.
    """
    by_rank = sorted_samples(keys, folder) if starts is None else sorted_apart(keys, starts, folder)
    return by_rank if isinstance(order, SortedOrder) else _moved(by_rank, order, folder)


def _moved(by_rank: Iterable[Int64Array], order: CurriculumOrder, folder: Path) -> Iterator[Int64Array]:
    """Samples by rank, int64 `[n]` at a time, brought to their places."""
    piece = max(_PLACES_AT_ONCE, order.num_places >> 16)
    starts = np.append(np.arange(0, order.num_places, piece, dtype=np.int64), order.num_places)
    kind = np.uint8 if len(starts) <= 257 else np.uint16
    with BucketFile(folder, starts) as buckets:
        rank = 0
        for samples in by_rank:
            places = order.places(np.arange(rank, rank + len(samples), dtype=np.int64))
            rank += len(samples)
            if places.min() < 0:
                samples, places = samples[places >= 0], places[places >= 0]
            pairs = (places.astype(np.uint64) << np.uint64(32)) | samples.astype(np.uint64)
            buckets.add((places // piece).astype(kind), pairs)
        for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            yield placed(buckets.read(first, last), first)
