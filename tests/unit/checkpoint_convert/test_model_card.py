"""The card and the record of an export say what the model was trained on and how it was checked."""

from __future__ import annotations

import hashlib
import json

from checkpoint_convert.architectures import ARCHITECTURES
from checkpoint_convert.model_card import Origin, blend_of, card_of, file_digest, record_of
from checkpoint_convert.parity import Parity
from megatron_ext.config import DataConfig, OptimConfig, RunConfig, TrainConfig
from megatron_ext.data.store.manifest import (
    Counts,
    DatasetManifest,
    FileFacts,
    InputFacts,
    TokenizerFacts,
    manifest_path,
)
from tests.unit.checkpoint_convert.test_laws import model_of


def record(tmp_path, name="llama"):
    prefix = tmp_path / "corpus_text"
    manifest = DatasetManifest(
        tool_version="1", key="text", dtype="uint16", append_eod=True, documents=1234, tokens=567890, largest_id=99,
        tokenizer=TokenizerFacts("SentencePieceTokenizer", "t.model", "fp", 101, 2),
        records=Counts(1240, 1234, 5, 1), quarantined_by_reason={"json": 5},
        inputs=[InputFacts("somewhere/deep/reviews.jsonl", 10, 1240)],
        bin_file=FileFacts(2, "binsha"), idx_file=FileFacts(1, "idxsha"),
    )  # fmt: skip
    manifest_path(prefix).write_text(manifest.to_json())
    run = RunConfig(
        model=model_of(name, tied=False),
        data=DataConfig(data_path=("0.3", str(prefix), "0.7", str(tmp_path / "gone"))),
        train=TrainConfig(seq_length=64, global_batch_size=16, bf16=True),
        optim=OptimConfig(lr=3e-4),
    )
    origin = Origin("iter_0000100", 100, 1600, {"imported_from": "base"})
    return record_of(run, origin, ARCHITECTURES[name], Parity(1e-6, 10.0, 64), "bfloat16", {"model.safetensors": "aa"})


def test_the_record_counts_tokens_and_keeps_the_facts_of_each_dataset(tmp_path):
    facts = json.loads(json.dumps(record(tmp_path)))
    assert facts["tokens_trained"] == 1600 * 64
    known, gone = facts["datasets"]
    assert (known["documents"], known["tokens"], known["weight"]) == (1234, 567890, 0.3)
    assert known["input_files"] == ["reviews.jsonl"]
    assert gone == {"name": "gone", "weight": 0.7}
    assert facts["parity"]["relative"] == 1e-7
    assert facts["origin"]["provenance"] == {"imported_from": "base"}
    assert facts["weight_files_sha256"] == {"model.safetensors": "aa"}
    assert facts["run"]["train"]["seq_length"] == 64


def test_the_card_tells_people_the_same(tmp_path):
    card = card_of(record(tmp_path), 123456, ["a note"])
    for words in ("license: unknown", "123,456", "102,400", "reviews.jsonl", "567,890 tokens", "1.00e-07", "- a note"):
        assert words in card
    assert "trust_remote_code" not in card
    assert "trust_remote_code=True" in card_of(record(tmp_path, "baichuan"), 1, [])
    assert str(tmp_path) not in card


def test_a_blend_is_read_as_training_reads_it():
    assert blend_of(("0.3", "a", "0.7", "b")) == [(0.3, "a"), (0.7, "b")]
    assert blend_of(("a", "b")) == [(None, "a"), (None, "b")]
    assert blend_of(("a",)) == [(None, "a")]
    assert blend_of(()) == []


def test_digests_are_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
