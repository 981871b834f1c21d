"""Training settings of published SentencePiece tokenizers."""

from __future__ import annotations

from dataclasses import dataclass

_DIGITS = tuple("0123456789")
_SPACE_RUNS = tuple("\u2581" * length for length in range(2, 33))


@dataclass(frozen=True)
class TrainingSettings:
    """What decides a SentencePiece model, besides the text.

    Attributes:
        model_type: bpe or unigram.
        vocab_size: number of pieces, special and byte pieces included.
        character_coverage: share of the text's characters that get a piece of their own.
        byte_fallback: spell other characters in 256 byte pieces instead of giving the unknown id.
        split_digits: keep pieces of several digits out of the vocabulary.
        normalization: identity, nfkc, nmt_nfkc, nfkc_cf or nmt_nfkc_cf.
        add_dummy_prefix: a space before every text.
        remove_extra_whitespaces: drop leading and trailing spaces and join runs of them; the text is lost.
        allow_whitespace_only_pieces: pieces for runs of spaces.
        max_piece_length: longest piece in characters.
        user_defined_symbols: pieces that always stand alone.
    """

    model_type: str = "bpe"
    vocab_size: int = 32000
    character_coverage: float = 0.99995
    byte_fallback: bool = True
    split_digits: bool = True
    normalization: str = "identity"
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    allow_whitespace_only_pieces: bool = True
    max_piece_length: int = 16
    user_defined_symbols: tuple[str, ...] = ()


# Source: the trainer and normalizer settings stored in the published model files, or the training scripts beside
# them. Role marks, emoji lists and reserved slots differ from release to release; give them with
# --user-defined-symbols.
PRESETS: dict[str, TrainingSettings] = {
    "llama2": TrainingSettings(),
    "baichuan2": TrainingSettings(
        vocab_size=125696,
        character_coverage=0.9999,
        add_dummy_prefix=False,
        max_piece_length=32,
        user_defined_symbols=_SPACE_RUNS,
    ),
    "telechat-52b": TrainingSettings(vocab_size=80000, character_coverage=1.0, user_defined_symbols=(*_DIGITS, "_")),
    "telechat-12b": TrainingSettings(
        vocab_size=120000, character_coverage=0.9999, user_defined_symbols=(*_DIGITS, "\n", "\t", "_")
    ),
    "internlm": TrainingSettings(vocab_size=103168, character_coverage=0.9999, add_dummy_prefix=False),
    "yuren": TrainingSettings(
        vocab_size=5456,
        character_coverage=1.0,
        byte_fallback=False,
        split_digits=False,
        remove_extra_whitespaces=True,
        allow_whitespace_only_pieces=False,
    ),
    "belle": TrainingSettings(
        vocab_size=25000,
        character_coverage=0.9995,
        byte_fallback=False,
        split_digits=False,
        normalization="nmt_nfkc",
        remove_extra_whitespaces=True,
        allow_whitespace_only_pieces=False,
    ),
    "medicalgpt": TrainingSettings(character_coverage=0.9995, normalization="nfkc"),
    "chinese-llama": TrainingSettings(
        model_type="unigram",
        vocab_size=20000,
        character_coverage=0.9995,
        byte_fallback=False,
        split_digits=False,
        normalization="nmt_nfkc",
        remove_extra_whitespaces=True,
        allow_whitespace_only_pieces=False,
    ),
}
