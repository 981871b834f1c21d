"""Every metric of a pass gives what its own function gives, for any number of workers and whichever of them die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum import document_blocks, score_passes, text_scores
from megatron_ext.data.curriculum.document_blocks import DocumentBlock, DocumentRange, document_ranges
from megatron_ext.data.curriculum.ngram_counts import count_ngrams
from megatron_ext.data.curriculum.score_passes import METRICS, DocumentPass, find_metric, needs_text
from megatron_ext.data.curriculum.token_scores import bigram_loss, rarity
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError
from tests.unit.data.byte_tokenizer import ByteTokenizer, use_tokenizer
from tests.unit.data.curriculum.scored import some_texts, text_dataset


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch) -> IndexedDataset:
    use_tokenizer(monkeypatch, ByteTokenizer())
    monkeypatch.setattr(score_passes, "document_ranges", small_ranges)
    return IndexedDataset(text_dataset(tmp_path, some_texts()))


def small_ranges(dataset: IndexedDataset, first: int = 0):
    return document_ranges(dataset, first, 1000, 7)


def scores_of(dataset: IndexedDataset, names: list[str], workers: int = 1, state: dict | None = None) -> np.ndarray:
    results = list(DocumentPass(dataset, names, ByteTokenizer(), workers).results(state))
    assert results[-1].state == {"documents": dataset.num_documents}
    return np.concatenate([result.scores for result in results], axis=1)


def test_each_row_is_the_function_of_its_metric(dataset: IndexedDataset):
    rows = dict(zip(METRICS, scores_of(dataset, list(METRICS)), strict=True))
    texts = some_texts()
    for name, of_text in (
        ("compression", text_scores.compression),
        ("diversity", text_scores.diversity),
        ("readability", text_scores.readability),
        ("length", lambda text: len(text.encode()) + 1),
    ):
        assert rows[name].tolist() == [of_text(text) for text in texts], name
    block, counts = DocumentBlock(dataset, DocumentRange(0, 60)), count_ngrams(dataset, True, lambda _: None)
    assert rows["rarity"] == pytest.approx(rarity(block, counts))
    assert rows["bigram"] == pytest.approx(bigram_loss(block, counts))
    assert len({row.tobytes() for row in rows.values()}) == len(METRICS)


def test_workers_and_the_place_of_the_start_change_nothing(dataset: IndexedDataset):
    names = list(METRICS)
    expected = scores_of(dataset, names)
    assert scores_of(dataset, names, workers=3).tobytes() == expected.tobytes()
    cut = list(small_ranges(dataset))[2].last
    assert scores_of(dataset, names, 2, {"documents": cut}).tobytes() == expected[:, cut:].tobytes()


def test_a_killed_worker_is_harmless(dataset: IndexedDataset, tmp_path: Path, monkeypatch):
    expected = scores_of(dataset, ["length", "compression"])
    mark, parent = tmp_path / "killed", os.getpid()

    class Deadly(DocumentBlock):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            if arguments[1].first > 20 and os.getpid() != parent and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(score_passes, "DocumentBlock", Deadly)
    assert scores_of(dataset, ["length", "compression"], workers=2).tobytes() == expected.tobytes()
    assert mark.exists()


def test_what_made_the_scores_is_told(dataset: IndexedDataset):
    made_by = DocumentPass(dataset, ["bigram", "compression"]).made_by
    assert list(made_by) == ["bigram", "compression"]
    assert made_by["bigram"]["prior_tokens"] == 100 and made_by["compression"]["level"] == 6


def test_unknown_metrics_are_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"rarety is unknown.*nearest is rarity"):
        find_metric("rarety")
    with pytest.raises(DataError, match=r"unigram, bigram, .*, model\."):
        find_metric("x", ["model"])
    assert [name for name in METRICS if needs_text(name)] == ["compression", "diversity", "readability"]
    assert document_blocks.BLOCK_TOKENS == 1 << 18  # part of what scores are: sums are taken block by block
