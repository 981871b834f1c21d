"""The compiled byte-level encoder gives the ids of the tokenizers library, pattern by pattern, and refuses the rest."""

from __future__ import annotations

import json
import unicodedata
from types import SimpleNamespace

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from megatron_ext import native
from megatron_ext.tokenizer import word_patterns
from megatron_ext.tokenizer.byte_level_native import added_ids, byte_characters, native_byte_level
from megatron_ext.tokenizer.engines import NotNativeError
from tests.unit.data.small import TEXTS
from tests.unit.tokenizer.odd_texts import ODD_TEXTS

pytestmark = pytest.mark.skipif(not native.COMPILED, reason="the extension is not built")

CORPUS = [*TEXTS * 5, "I've don't I'LL they're 1234567 aaaaaaaa ÉCOLE école \n\n  \r\n x Привет мир 한국"] * 3
KINDS = ["GPT2", "GPT2 prefix", "LLAMA3", "QWEN", "CL100K_JSON", "MEGATRON_V1", "MEGATRON_V2", "O200K"]


def train(kind: str, nfc: bool = False, special: bool = True) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    if kind.startswith("GPT2"):
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("prefix"))
    else:
        split = pre_tokenizers.Split(Regex(getattr(word_patterns, kind)), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        model.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    if nfc:
        model.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    if special:
        model.add_special_tokens([AddedToken("<|x|>", normalized=False), AddedToken("<|x|>y", normalized=False)])
        model.add_tokens([AddedToken("<nrm>", normalized=True), AddedToken("quick", normalized=True)])
    return model


@pytest.fixture(scope="module", params=KINDS)
def files(request: pytest.FixtureRequest) -> list[str]:
    """Plain, with NFC, with whole words that the merges would not give."""
    plain = train(request.param).to_str()
    whole = json.loads(plain)
    whole["model"]["ignore_merges"] = True
    whole["model"]["merges"] = [merge for place, merge in enumerate(whole["model"]["merges"]) if place % 3]
    return [plain, train(request.param, nfc=True).to_str(), json.dumps(whole)]


def same_ids(file: str, texts: list[str], tuning: tuple[int, int]) -> int:
    """Compare with the library; how many texts the encoder declined."""
    model = tokenizers.Tokenizer.from_str(file)
    encoder, accepts = native_byte_level(file.encode(), model, native.bpe.BpeTuning(*tuning))
    texts = [text for text in texts if accepts is None or accepts(text)]
    reference = [encoding.ids for encoding in model.encode_batch(texts, add_special_tokens=False)]
    for _ in range(2):  # the second time from the cache
        ids, lengths, declined = encoder.encode_batch(texts)
        wanted = [[] if place in declined else row for place, row in enumerate(reference)]
        assert lengths.tolist() == [len(row) for row in wanted]
        assert ids.tolist() == [index for row in wanted for index in row]
    return len(declined)


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(ODD_TEXTS, max_size=8), tuning=st.sampled_from([(2, 1), (7, 3), (96, 16)]))
def test_ids_are_the_librarys(texts: list[str], tuning: tuple[int, int], files: list[str]):
    for file in files:
        same_ids(file, texts, tuning)


def test_every_certain_character_in_every_neighbourhood(files: list[str]):
    codes = [code for code in range(0x40000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    few = [code for code in codes if code < 0x600 or code % 211 == 0]
    assert (
        same_ids(
            files[0],
            ["".join(f" {chr(c)}a'{chr(c)}1{chr(c)}" for c in few[i : i + 50]) for i in range(0, len(few), 50)],
            (96, 10),
        )
        == 0
    )


@pytest.mark.parametrize("text", ["\u0378", "a\U00040000", "天\U000e0100"])
def test_characters_whose_class_is_uncertain_are_declined(text: str):
    assert same_ids(train("QWEN").to_str(), ["a", text, "b"], (96, 4)) == 1


def test_what_the_post_processor_adds_is_found():
    model = train("GPT2")
    assert added_ids(model) == ([], [])
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert added_ids(model) == ([0], [1, 1])


def test_a_post_processor_that_does_more_is_noticed():
    class Doubling:
        def encode(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
            ids = [ord(c) for c in text] * (1 + add_special_tokens)
            return SimpleNamespace(ids=ids, special_tokens_mask=[0] * len(ids))

    assert added_ids(Doubling()) is None


TRUNCATION = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}


def changed(file: dict, change: str) -> None:
    model, token = file["model"], file["added_tokens"][0]
    changes = {
        "truncation": lambda: file.update(truncation=TRUNCATION),
        "normalizer": lambda: file.update(normalizer={"type": "Lowercase"}),
        "pre-tokenizer": lambda: file.update(pre_tokenizer={"type": "Whitespace"}),
        "bytes": lambda: model["vocab"].pop("ÿ"),
        "dropout": lambda: model.update(dropout=0.1),
        "lstrip": lambda: token.update(lstrip=True),
        "WordLevel": lambda: file.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
    }  # fmt: skip
    changes[change]()


@pytest.mark.parametrize(
    "change", ["truncation", "normalizer", "pre-tokenizer", "bytes", "dropout", "lstrip", "WordLevel"]
)
def test_other_files_are_left_to_the_library(change: str):
    file = json.loads(train("QWEN", special=False).to_str())
    changed(file, change)
    content = json.dumps(file)
    with pytest.raises(NotNativeError, match=change):
        native_byte_level(content.encode(), tokenizers.Tokenizer.from_str(content))


# 文 is the bytes E6 96 87, 中 is E4 B8 AD. Merging from bytes does not always give what merging from characters would.
MAKES_BOTH = [("æ", "ĸ"), ("æĸ", "ĩ"), ("ä", "¸")]
ACROSS = {
    "a token ends inside a character": [*MAKES_BOTH, ("æĸĩ", "ä¸"), ("ä¸", "Ń"), ("æĸĩ", "ä¸Ń")],
    "a character is complete too late": [*MAKES_BOTH, ("æĸĩ", "ä¸Ń"), ("æĸĩ", "æĸĩ"), ("ä¸", "Ń")],
    "characters come first": [*MAKES_BOTH, ("ä¸", "Ń"), ("æĸĩ", "ä¸Ń"), ("æĸĩ", "æĸĩ")],
}


@pytest.mark.parametrize("case", ACROSS)
def test_merges_across_characters_come_in_their_order(case: str):
    file = json.loads(train("QWEN", special=False).to_str())
    tokens = [*byte_characters(), *dict.fromkeys(left + right for left, right in ACROSS[case])]
    file["added_tokens"] = []
    file["model"] |= {"vocab": {token: index for index, token in enumerate(tokens)}, "merges": ACROSS[case]}
    assert (
        same_ids(json.dumps(file), ["文中文", "文文中", "中文文中文中中", "a文中b文文中", "文" * 50 + "中文"], (96, 8))
        == 0
    )
