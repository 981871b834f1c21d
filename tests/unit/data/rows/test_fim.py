"""Fill-in-the-middle: rearranged documents hold the same text, in the shares asked for, whoever encodes them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.rows.fim import draw, fim_segments
from megatron_ext.data.rows.settings import FimSettings, RowSettings
from megatron_ext.data.rows.spans import Segment
from tests.unit.data.rows.word_tokenizer import WordTokenizer, documents, encode

ALWAYS = FimSettings(rate=1.0, spm_rate=0.5, seed=0)
PREFIX, MIDDLE, SUFFIX = "<fim_prefix>", "<fim_middle>", "<fim_suffix>"


def marked(name: str) -> Segment:
    return Segment(name, special=True)


def test_the_golden_orders():
    """The draw of a seed and a text is fixed for ever: the bytes of a dataset depend on it."""
    text = "一二三四五 six seven"
    assert draw(ALWAYS, text) == (True, True, 4, 7)
    assert fim_segments(replace(ALWAYS, spm_rate=0.0), text) == [
        marked(PREFIX),
        Segment("一二三四"),
        marked(SUFFIX),
        Segment("ix seven"),
        marked(MIDDLE),
        Segment("五 s"),
    ]
    assert fim_segments(replace(ALWAYS, spm_rate=1.0), text) == [
        marked(PREFIX),
        marked(SUFFIX),
        Segment("ix seven"),
        marked(MIDDLE),
        Segment("一二三四"),
        Segment("五 s"),
    ]


@given(st.text(min_size=1, max_size=40), st.integers(-(2**63), 2**63 - 1), st.floats(0, 1), st.floats(0, 1))
def test_a_rearranged_text_can_be_put_back(text: str, seed: int, rate: float, spm_rate: float):
    settings = FimSettings(rate, spm_rate, seed)
    fate = draw(settings, text)
    assert draw(settings, text) == fate
    assert 0 <= fate.start <= fate.end <= len(text)
    segments = fim_segments(settings, text)
    plain = "".join(segment.text for segment in segments if not segment.special)
    assert sorted(plain) == sorted(text)
    specials = [segment.text for segment in segments if segment.special]
    assert specials == ([PREFIX, SUFFIX, MIDDLE] if fate.apply else [])
    if not fate.apply:
        assert plain == text


def test_the_shares_are_those_asked_for():
    settings = FimSettings(rate=0.3, spm_rate=0.25, seed=3)
    fates = [draw(settings, f"document {number} 文") for number in range(4000)]
    applied = [fate for fate in fates if fate.apply]
    # four standard deviations of a binomial share
    assert abs(len(applied) / 4000 - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    assert abs(sum(fate.suffix_first for fate in applied) / len(applied) - 0.25) < 4 * (0.25 * 0.75 / 1100) ** 0.5
    assert abs(sum(fate.start for fate in fates) / 4000 - 14.5 / 3) < 0.5  # smaller of two uniform places


def test_the_rate_decides_for_nested_sets_and_the_seed_for_other_ones():
    texts = [f"t{number}" for number in range(300)]
    half, all_but = (
        {text for text in texts if draw(FimSettings(rate=rate, seed=1), text).apply} for rate in (0.5, 0.9)
    )
    assert half < all_but
    assert half != {text for text in texts if draw(FimSettings(rate=0.5, seed=2), text).apply}


def test_an_empty_text_stays_empty():
    assert fim_segments(ALWAYS, "") == []


def test_the_encoded_documents_do_not_depend_on_the_block_they_are_in():
    tokenizer = WordTokenizer(PREFIX, MIDDLE, SUFFIX, bos="<s>")
    rows = RowSettings("text", append_eod=True, fim=FimSettings(rate=0.5, spm_rate=0.5, seed=11))
    records = [{"text": f"alpha beta {number} 文字"} for number in range(40)]
    together = documents(tokenizer, encode(tokenizer, rows, *records))
    alone = [documents(tokenizer, encode(tokenizer, rows, record))[0] for record in records]
    assert together == alone
    rearranged = [document for document in together if (PREFIX, 1) in document]
    assert 8 < len(rearranged) < 32
    for document in together:
        assert document[0] == ("<s>", 1)
        assert document[-1] == ("</s>", 1)
    assert encode(tokenizer, rows, *records).documents[0].mask_bytes is None
