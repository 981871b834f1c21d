"""The first look at the real input: a fast engine must give the reference library's ids on it, or no work starts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.forms import RowForm
from megatron_ext.data.sources.blocks import RecordBlock
from megatron_ext.data.sources.inputs import InputFile
from megatron_ext.data.sources.pieces import ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.tokenizer.base import Tokenizer
from megatron_ext.tokenizer.engine_check import refuse_different_ids

_FILES = 4  # looked into: the first, the last, and some between
_BLOCKS = 8  # of each, in search of the first with a text
_CHARACTERS = 1 << 17  # taken from each: a fraction of a second of the reference library


def check_on_files(files: Sequence[InputFile], form: RowForm, tokenizer: Tokenizer) -> None:
    """Compare the engine with the reference library on the beginnings of some files that can be read again.

    Raises:
        TokenizerError: the ids differ.
    """
    regular = [file for file in files if file.is_regular]
    for place in sorted({round(part * (len(regular) - 1) / (_FILES - 1)) for part in range(_FILES)} if regular else ()):
        for block in islice(read_blocks([regular[place]], ReadProgress()), _BLOCKS):
            if check_on_block(block, form, tokenizer):
                break


def check_on_block(block: RecordBlock, form: RowForm, tokenizer: Tokenizer) -> bool:
    """Compare the engine with the reference library on the texts at the beginning of a block; whether it has any.

    Raises:
        TokenizerError: the ids differ.
    """
    texts = sample_texts(block, form)
    refuse_different_ids(tokenizer, texts)
    return bool(texts)


def sample_texts(block: RecordBlock, form: RowForm, characters: int = _CHARACTERS) -> list[str]:
    """The texts of the first records, as the tokenizer will get them, about so many characters of them."""
    texts: list[str] = []
    for record in block.parsed():
        if isinstance(record, RecordError):
            continue
        try:
            rows = form.segments(record)
        except RecordError:
            continue
        for segment in (segment for row in rows for segment in row if not segment.special):
            texts.append(segment.text[:characters])
            characters -= len(texts[-1])
            if characters <= 0:
                return texts
    return texts
