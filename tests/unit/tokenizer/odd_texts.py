"""Texts that find mistakes in tokenizers: mixed scripts, runs, spaces of every kind, names of special tokens."""

from __future__ import annotations

from hypothesis import strategies as st

LETTERS = "abcxyz stremvdl STREMVDL éÉǅʰªºſ\u0301\u0903 天地玄黄宇宙 Привет مرحبا 한국"
SPACES = "  \t\n\r\x0b\x85\xa0\u2028\u3000▁"
DIGITS = "0123456789٣Ⅷ½"
SYMBOLS = "''./,!?-_()<>|@#，。“”🙂👨\u200d👩\x00\x1c\u200b"
WORDS = [
    "the", "quick", " brown", "  ", "\n\n", " \n ", "\r\n", "don't", "I'VE", "'ſ", "'s", "天地", "，天地", "aaaaaaaa",
    "1234567", "<s>", "</s>", "<unk>", "<0x41>", "<|x|>", "<|x|>y", "<nrm>", "▁▁", "<sep>", " inner", "🙂🙂",
]  # fmt: skip

PARTS = (
    st.sampled_from(WORDS)
    | st.text(st.sampled_from(LETTERS), max_size=8)
    | st.text(st.sampled_from(SPACES + DIGITS + SYMBOLS), max_size=5)
    | st.text(max_size=4)
)
ODD_TEXTS = st.lists(PARTS, max_size=12).map("".join) | st.builds(
    lambda part, times: part * times, PARTS, st.integers(1, 60)
)
