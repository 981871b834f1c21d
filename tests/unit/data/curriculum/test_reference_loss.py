"""The loss of each document is the one that transformers itself computes for it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ext.data.curriculum import reference_loss
from megatron_ext.data.curriculum.reference_loss import ModelPass
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError
from tests.unit.data.described import Record, write_run
from tests.unit.data.small import random_documents

CONTEXT = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
    )
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """These models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def dataset(tmp_path: Path) -> IndexedDataset:
    write_indexed(tmp_path / "data", [*random_documents(0, 20, 40, vocab_size=64), [5], []], np.uint16)
    return IndexedDataset(tmp_path / "data")


def losses(made: ModelPass, state: dict | None = None) -> list[float]:
    return [score for result in made.results(state) for score in result.scores[0].tolist()]


@pytest.mark.parametrize("logits", [1 << 26, 64 * 60, 1])
def test_batches_do_not_change_the_losses(logits: int, folder: Path, dataset: IndexedDataset, monkeypatch):
    monkeypatch.setattr(reference_loss, "_BATCH_LOGITS", logits)
    monkeypatch.setattr(reference_loss, "_BLOCK_TOKENS", 100)
    monkeypatch.setattr(reference_loss, "_ROWS", 7)
    model = LlamaForCausalLM.from_pretrained(folder)
    expected = []
    for document in range(dataset.num_documents):
        ids = torch.tensor(dataset[document].astype(np.int64)[:CONTEXT])[None]
        expected.append(model(input_ids=ids, labels=ids).loss.item() if ids.numel() > 1 else 0.0)
    made = ModelPass(dataset, folder)
    assert losses(made) == pytest.approx(expected, rel=1e-5)
    assert np.std(expected[:-2]) > 0.05
    states = [result.state for result in made.results(None)]
    assert losses(made, states[1]) == losses(made)[states[1]["documents"] :]


def test_the_model_is_told_by_its_bytes(folder: Path, dataset: IndexedDataset):
    facts = ModelPass(dataset, folder).made_by["model"]
    assert facts["context"] == CONTEXT and len(facts["sha256"]) == 64


def test_models_that_cannot_judge_the_data_are_refused(folder: Path, dataset: IndexedDataset, tmp_path: Path):
    with pytest.raises(DataError, match="no Hugging Face folder"):
        ModelPass(dataset, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "config.json").write_text('{"model_type": "absent"}', encoding="utf-8")
    with pytest.raises(DataError, match="cannot be opened"):
        ModelPass(dataset, tmp_path)
    with pytest.raises(DataError, match=r"holds the id 1000.*ids 0 to 63"):
        ModelPass(IndexedDataset(write_run(tmp_path / "x", [Record("a", [1])])), folder)
    write_indexed(tmp_path / "large", [[1, 64]], np.uint16)
    with pytest.raises(DataError, match="holds the id 64"):
        losses(ModelPass(IndexedDataset(tmp_path / "large"), folder))
