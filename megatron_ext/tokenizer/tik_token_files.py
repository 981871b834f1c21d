"""Files of ranked tokens, as the tiktoken library reads them, and the settings beside them.

A rank file has one token a line, its bytes in base64 and its rank in decimal. Megatron's variant is a JSON list of
objects with `token_bytes` (base64) in the order of their ranks. Neither says how texts are split and which special
tokens there are. That stands in `tiktoken_settings.json` beside the file; without it Megatron-LM's defaults hold, and
those of Qwen 1 for a file with as many tokens as `qwen.tiktoken`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from pathlib import Path
from typing import Any

import orjson

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.word_patterns import CL100K, MEGATRON_V1, MEGATRON_V2, O200K, QWEN

SETTINGS_NAME = "tiktoken_settings.json"
PATTERNS = {"v1": MEGATRON_V1, "v2": MEGATRON_V2, "qwen": QWEN, "cl100k": CL100K, "o200k": O200K}
_QWEN_RANKS = 151_643


@dataclasses.dataclass(frozen=True)
class TikTokenSettings:
    """What a rank file leaves open; the defaults are Megatron-LM's.

    Attributes:
        pattern: how texts are split, one of PATTERNS (Megatron-LM's --tiktoken-pattern).
        special_tokens: the named special tokens in the order of their ids (--tiktoken-special-tokens).
        num_special_tokens: how many there are in all (--tiktoken-num-special-tokens); those without a name are called
            `<SPECIAL_i>`, i their place.
        specials_first: whether the special tokens have the ids from 0 on, and the others those behind them; else they
            stand behind the ranks.
        vocab_size: ids in all; later ranks are left out. None: all of them.
        eod, bos, pad: names of the special tokens with these roles; None where there is none.
    """

    pattern: str = "v2"
    special_tokens: tuple[str, ...] = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
    num_special_tokens: int = 1000
    specials_first: bool = True
    vocab_size: int | None = None
    eod: str = "</s>"
    bos: str | None = "<s>"
    pad: str | None = "<pad>"

    def all_special_tokens(self) -> list[str]:
        """The named ones and those that fill up."""
        named = list(self.special_tokens)
        return named + [f"<SPECIAL_{place}>" for place in range(len(named), self.num_special_tokens)]


_MEGATRON_VOCAB_SIZE = 2**17  # Megatron-LM's default; a longer JSON list is cut there
_QWEN = TikTokenSettings(
    pattern="qwen",
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
    num_special_tokens=208,
    specials_first=False,
    eod="<|endoftext|>",
    bos=None,
    pad=None,
)


def read_ranks(content: bytes, file: Path) -> list[bytes]:
    """The tokens of a rank file in the order of their ranks, which are 0, 1, 2 and so on.

    Raises:
        TokenizerError: the file is no rank file, a rank is missing or double, tokens are equal, or a byte is no token.
    """
    try:
        if content.lstrip()[:1] == b"[":
            rows = [(row["token_bytes"], row["rank"]) for row in orjson.loads(content)]
        else:
            rows = [(line.split()[0], int(line.split()[1])) for line in content.splitlines() if line.strip()]
        ranked = {rank: base64.b64decode(token, validate=True) for token, rank in rows}
    except (ValueError, IndexError, KeyError, TypeError, binascii.Error) as error:
        raise TokenizerError(
            f"{file} is not a file of ranked tokens, or it is damaged ({error})",
            "Each line is a token in base64 and its rank",
            "Give a complete .tiktoken file, or use the tokenizer type that fits the file",
        ) from None
    tokens = [ranked.get(rank, b"") for rank in range(len(rows))]
    if len(set(tokens)) != len(rows) or b"" in tokens:
        raise TokenizerError(f"{file} is damaged", f"Its {len(rows)} tokens must be different, with ranks from 0 on")
    missing = 256 - len({token for token in tokens if len(token) == 1})
    if missing:
        raise TokenizerError(f"{file} cannot write every text", f"{missing} of the 256 bytes are no token of it")
    return tokens


def settings_for(file: Path, is_list: bool, num_ranks: int) -> TikTokenSettings:
    """The settings beside a rank file, or the usual ones for it.

    Raises:
        TokenizerError: the settings cannot be read or contradict themselves.
    """
    path = file.parent / SETTINGS_NAME
    if not path.is_file():
        if num_ranks == _QWEN_RANKS and not is_list:
            return _QWEN
        return TikTokenSettings(vocab_size=min(_MEGATRON_VOCAB_SIZE, num_ranks + 1000) if is_list else None)
    try:
        given: dict[str, Any] = dict(orjson.loads(path.read_bytes()))
        given |= {"special_tokens": tuple(given.get("special_tokens", TikTokenSettings.special_tokens))}
        settings = TikTokenSettings(**given)
        _check(settings)
    except (OSError, ValueError, TypeError) as error:
        known = ", ".join(field.name for field in dataclasses.fields(TikTokenSettings))
        raise TokenizerError(f"{path} cannot be used ({error})", f"It may set {known}", "Mend it") from None
    return settings


def _check(settings: TikTokenSettings) -> None:
    names = settings.all_special_tokens()
    if settings.pattern not in PATTERNS:
        raise ValueError(f"pattern {settings.pattern!r} is not one of {', '.join(PATTERNS)}")
    if len(names) != settings.num_special_tokens or len(set(names)) != len(names):
        raise ValueError(f"{len(names)} different special tokens, num_special_tokens {settings.num_special_tokens}")
    for name in (settings.eod, settings.bos, settings.pad):
        if name is not None and name not in names:
            raise ValueError(f"{name!r} is not one of the special tokens")
    if any(a != b and b.startswith(a) for a in settings.special_tokens for b in settings.special_tokens):
        raise ValueError("a special token is the beginning of another one")
