"""The metrics that need the dataset alone, and the pass that computes any number of them for each document at once."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import megatron_ext
from megatron_ext.data.curriculum import text_scores, token_scores
from megatron_ext.data.curriculum.document_blocks import DocumentBlock, DocumentRange, document_ranges
from megatron_ext.data.curriculum.ngram_counts import TABLE_BITS, NgramCounts, count_ngrams
from megatron_ext.data.curriculum.score_progress import ScoreReporter
from megatron_ext.data.curriculum.score_run import PassResult
from megatron_ext.data.preprocessing.ordered_pool import ordered_map
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import Tokenizer

BlockScore = Callable[[DocumentBlock], NDArray[np.float64]]


@dataclass(frozen=True)
class Metric:
    """One way to score a document.

    Attributes:
        says: what it is, in a few words.
        facts: what decides the scores beside the tokens, for the record.
        of_block: from a block alone.
        of_counts: from a block and the counts of the dataset.
        of_text: from the text of a document.
        needs_pairs: the counts of pairs are needed too.
    """

    says: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    of_block: BlockScore | None = None
    of_counts: Callable[[DocumentBlock, NgramCounts], NDArray[np.float64]] | None = None
    of_text: Callable[[str], float] | None = None
    needs_pairs: bool = False


METRICS: dict[str, Metric] = {
    "length": Metric("tokens of the document", of_block=token_scores.length),
    "rarity": Metric("mean -log share of its tokens in the dataset, nats", of_counts=token_scores.rarity),
    "unigram": Metric(
        "loss per token under the unigram model of all other documents, nats", of_counts=token_scores.unigram_loss
    ),
    "bigram": Metric(
        "loss per token under the bigram model of all other documents, nats",
        {"table_bits": TABLE_BITS, "prior_tokens": token_scores.PRIOR_TOKENS},
        of_counts=token_scores.bigram_loss,
        needs_pairs=True,
    ),
    "compression": Metric(
        "compressed size / size of the text",
        {"zlib": zlib.ZLIB_RUNTIME_VERSION, "level": text_scores.COMPRESSION_LEVEL},
        of_text=text_scores.compression,
    ),
    "diversity": Metric(
        "moving-average type-token ratio", {"window": text_scores.DIVERSITY_WINDOW}, of_text=text_scores.diversity
    ),
    "readability": Metric("LIX, Chinese characters counted too", of_text=text_scores.readability),
}
"""Name -> metric of everything that the dataset and its tokenizer suffice for."""


def find_metric(name: str, others: Sequence[str] = ()) -> Metric:
    """The metric of this name.

    Raises:
        DataError: there is none; `others` are names that the caller knows beyond those here.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, [*METRICS, *others], n=1)
        raise DataError(
            f"--metric {name} is unknown",
            f"The metrics are {', '.join([*METRICS, *others])}",
            f"The nearest is {near[0]}" if near else "",
        )
    return METRICS[name]


def needs_text(name: str) -> bool:
    """Whether a metric of METRICS needs the tokenizer of the dataset."""
    return METRICS[name].of_text is not None


class DocumentPass:
    """Scores documents by what stands in them, many at once in worker processes.

    Where counts of the whole dataset are needed, they are taken in one pass before; the workers share them.

    Args:
        dataset: the opened dataset.
        names: names of METRICS, each once.
        tokenizer: the one that made the dataset; None where no metric needs text.
        workers: worker processes, at least 1.
    """

    def __init__(
        self, dataset: IndexedDataset, names: Sequence[str], tokenizer: Tokenizer | None = None, workers: int = 1
    ) -> None:
        self._dataset, self._tokenizer, self._workers = dataset, tokenizer, workers
        self._metrics = {name: find_metric(name) for name in names}

    @property
    def made_by(self) -> dict[str, dict[str, Any]]:
        """Name of each score file -> how its scores are made."""
        version = {"tool_version": megatron_ext.__version__}
        return {
            name: {"metric": name, "says": metric.says, **metric.facts, **version}
            for name, metric in self._metrics.items()
        }

    def results(self, state: dict[str, Any] | None) -> Iterator[PassResult]:
        """The scores of all documents, or of those behind the documents that gave `state`."""
        work = partial(self._score, counts=self._count())
        ranges, waiting = iter(document_ranges(self._dataset, state["documents"] if state else 0)), []

        def noted() -> Iterator[DocumentRange]:
            for documents in ranges:
                waiting.append(documents)
                yield documents

        with closing(ordered_map(noted(), work, self._workers, _describe)) as results:  # type: ignore[type-var]
            for scores in results:
                yield PassResult(scores, {"documents": waiting.pop(0).last})

    def _count(self) -> NgramCounts | None:
        metrics = self._metrics.values()
        if not any(metric.of_counts for metric in metrics):
            return None
        reporter = ScoreReporter("counting tokens", self._dataset.num_tokens)
        try:
            return count_ngrams(self._dataset, any(metric.needs_pairs for metric in metrics), reporter.advance)
        finally:
            reporter.close()

    def _score(self, documents: DocumentRange, counts: NgramCounts | None) -> NDArray[np.float64]:
        block = DocumentBlock(self._dataset, documents, self._tokenizer)
        return np.stack([_scores(metric, block, counts) for metric in self._metrics.values()])


def _scores(metric: Metric, block: DocumentBlock, counts: NgramCounts | None) -> NDArray[np.float64]:
    if metric.of_block is not None:
        return metric.of_block(block)
    if metric.of_counts is not None and counts is not None:
        return metric.of_counts(block, counts)
    assert metric.of_text is not None  # each metric has one of the three
    return np.array([metric.of_text(text) for text in block.texts], np.float64)


def _describe(documents: DocumentRange) -> str:
    return f"documents {documents.first} to {documents.last - 1}"
