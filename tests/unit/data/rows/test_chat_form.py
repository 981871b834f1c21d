"""Conversations of any row format become one output with a mask; the end of a row is the template's or asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.tokenizer.hugging_face import HuggingFaceTokenizer
from megatron_ext.tokenizer.sentence_piece import Llama2Tokenizer
from tests.unit.data.rows.word_tokenizer import WordTokenizer, encode, one_row, why_refused
from tests.unit.data.small import TEXTS

RECORD = {"input": "问", "output": "ok"}
TELECHAT = WordTokenizer("<_user>", "<_bot>", "<_end>")


def test_an_asked_for_end_is_added_where_the_template_has_another():
    rows = RowSettings("input-output", append_eod=True)
    assert one_row(TELECHAT, rows, RECORD)[-2:] == [("<_end>", 1), ("</s>", 1)]
    assert one_row(TELECHAT, RowSettings("input-output"), RECORD)[-1] == ("<_end>", 1)
    belle = RowSettings("input-output", chat_template="belle", append_eod=True)
    assert one_row(TELECHAT, belle, RECORD)[-2:] == [("ok", 1), ("</s>", 1)]


def test_the_label_rule_judges_the_added_end_too():
    rows = RowSettings("input-output", append_eod=True, label_rule="structure")
    assert one_row(TELECHAT, rows, RECORD)[-1] == ("</s>", 1)


@pytest.mark.parametrize(("rule", "has_mask"), [("all", False), ("m0", False), ("answers", True)])
def test_only_a_rule_that_learns_everything_needs_no_mask(rule: str, has_mask: bool):
    block = encode(TELECHAT, RowSettings("input-output", label_rule=rule), RECORD)
    assert (block.documents[0].mask_bytes is not None) is has_mask


def test_a_role_without_place_refuses_the_record():
    record = {"conversations": [{"from": "system", "value": "S"}, {"from": "user", "value": "a"}]}
    record["conversations"].append({"from": "gpt", "value": "b"})
    reason, detail = why_refused(WordTokenizer(), RowSettings("conversations", chat_template="belle"), record)
    assert (reason, detail) == ("bad conversation", "chat template belle has no place for a message of role system")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE file with TeleChat's marks, which begins every text with <s>."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", "<_user>", "<_bot>", "<_end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXTS * 5, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    path = tmp_path_factory.mktemp("marks") / "tokenizer.json"
    model.save(str(path))
    return path


def test_texts_between_special_tokens_get_the_ids_that_the_library_gives_the_whole_row(byte_level: Path):
    records = [{"input": f"{a}<_bot>{b}<_user>{b}", "output": a} for a, b in itertools.pairwise(TEXTS)]
    block = encode(HuggingFaceTokenizer(byte_level), RowSettings("input-output", append_eod=True), *records)
    library = tokenizers.Tokenizer.from_file(str(byte_level))
    expected = [
        library.encode(f"<_user>{r['input'].replace('<_user>', '<_end><_user>')}<_bot>{r['output']}<_end></s>")
        for r in records
    ]
    found = np.frombuffer(block.documents[0].token_bytes, np.uint16).tolist()
    assert found == [index for encoding in expected for index in encoding.ids[1:]]  # a chat row has no <s>
    mask = block.documents[0].mask_bytes
    assert mask is not None
    assert {index for index, code in zip(found, mask, strict=True) if index < 5 and code == 0} == set()


def test_a_sentencepiece_type_that_begins_texts_with_bos_begins_no_part_of_a_row(model_file: Path):
    tokenizer = Llama2Tokenizer(model_file)
    record = {"instruction": TEXTS[1], "output": TEXTS[0]}
    block = encode(tokenizer, RowSettings("instruction", chat_template="belle"), record)
    question = tokenizer.encode_plain_batch([f"Human: \n{TEXTS[1]}\n\nAssistant: \n"]).ids.tolist()
    answer = [*tokenizer.encode_plain_batch([TEXTS[0]]).ids.tolist(), tokenizer.eod_id]
    assert np.frombuffer(block.documents[0].token_bytes, np.uint16).tolist() == question + answer
    assert block.documents[0].mask_bytes == bytes([0] * len(question) + [1] * len(answer))
