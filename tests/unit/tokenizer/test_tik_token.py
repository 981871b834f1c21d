"""TikTokenizer gives the ids of the tiktoken library and of Megatron's own class."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.tokenizers.text.libraries.tiktoken_tokenizer import TikTokenTokenizer

from megatron_ext import native
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.tik_token import TikTokenizer
from megatron_ext.tokenizer.tik_token_files import PATTERNS, SETTINGS_NAME
from tests.unit.data.small import TEXTS
from tests.unit.tokenizer.odd_texts import ODD_TEXTS


@pytest.fixture(scope="module", params=PATTERNS)
def tokenizer(
    request: pytest.FixtureRequest, rank_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> TikTokenizer:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / SETTINGS_NAME).write_text(
        json.dumps({"pattern": request.param, "specials_first": len(request.param) < 5})
    )
    return TikTokenizer(Path(shutil.copy(rank_file, folder)))


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(ODD_TEXTS, max_size=8))
def test_ids_are_the_librarys(texts: list[str], tokenizer: TikTokenizer):
    assert tokenizer.engine == ("native" if native.COMPILED else "tiktoken")
    texts = [*texts, "<s>a<SPECIAL_999></s>", "a\n  ", " \n \n"]
    ours, wanted = tokenizer.encode_batch(texts), tokenizer.encode_reference_batch(texts)
    assert ours.ids.tolist() == wanted.ids.tolist()
    assert ours.lengths.tolist() == wanted.lengths.tolist()
    for text, ids in zip(texts, map(tokenizer.encode, texts), strict=True):
        assert tokenizer.decode(ids) == text


def test_ids_are_megatrons(rank_file: Path, tmp_path: Path):
    rows = [line.split() for line in rank_file.read_bytes().splitlines()]
    tokens = [base64.b64decode(token) for token, _ in rows]
    tokens.sort(
        key=lambda token: (len(token) > 1, token if len(token) == 1 else b"")
    )  # as Megatron wants it: bytes first
    listed = [{"rank": i, "token_bytes": base64.b64encode(t).decode(), "token_str": ""} for i, t in enumerate(tokens)]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(listed))
    theirs = TikTokenTokenizer(str(path), vocab_size=1000 + len(tokens), pattern="v2")
    ours = TikTokenizer(path)
    assert (ours.vocab_size, ours.eod_id, ours.bos_id, ours.pad_id) == (
        theirs.vocab_size, theirs.eod, theirs.bos_id, theirs.pad_id,
    )  # fmt: skip
    for text in [*TEXTS, "<s>a</s> <mask><SPECIAL_10>"]:
        assert ours.encode(text) == theirs.text_to_ids(text)


def test_names_and_files(rank_file: Path, tmp_path: Path):
    tokenizer = TikTokenizer(rank_file)
    assert tokenizer.files == [rank_file]
    assert tokenizer.vocab_size == 1000 + len(tokenizer.tokens)
    assert [tokenizer.token_id(name) for name in ("</s>", "<SPECIAL_7>", "nowhere")] == [2, 7, None]
    assert tokenizer.tokens[tokenizer.token_id("a") or 0] == b"a"
    copy = Path(shutil.copy(rank_file, tmp_path))
    (tmp_path / SETTINGS_NAME).write_text('{"pattern": "v1"}')
    other = TikTokenizer(copy)
    assert [path.name for path in other.files] == [rank_file.name, SETTINGS_NAME]
    assert other.fingerprint != tokenizer.fingerprint


def test_a_vocabulary_can_be_cut_and_not_stretched(rank_file: Path, tmp_path: Path):
    copy = Path(shutil.copy(rank_file, tmp_path))
    (tmp_path / SETTINGS_NAME).write_text('{"vocab_size": 1300}')
    assert TikTokenizer(copy).vocab_size == 1300
    (tmp_path / SETTINGS_NAME).write_text('{"vocab_size": 5000}')
    with pytest.raises(TokenizerError, match="4000 are asked for"):
        TikTokenizer(copy)


def test_the_reference_engine_and_texts_it_alone_can_read(rank_file: Path):
    mine, theirs = TikTokenizer(rank_file), TikTokenizer(rank_file, engine="reference")
    assert theirs.engine == "tiktoken"
    for text in ["a\ud800b", "\u0378", *TEXTS]:
        assert mine.encode(text) == theirs.encode(text)
    with pytest.raises(TokenizerError):
        mine.decode([mine.vocab_size])
