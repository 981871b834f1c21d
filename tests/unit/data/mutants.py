"""Random damage to good files of JSON lines, and an independent reading of what is left of them."""

from __future__ import annotations

import json
import random

import numpy as np

WORDS = ["the", "天地玄黄", "🙂", "a\nb", "\u2028", "{}", '"', "\\", "\x00", "", "é", "x" * 300, "1e5", "[1, 2]"]
_BYTES = [
    b"\n",
    b"\r",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b",",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\xef\xbb\xbf",
]


def good_file(dice: random.Random) -> bytes:
    """One to eight good lines, as different programs write them."""
    lines = []
    for _ in range(dice.randint(1, 8)):
        record = {"text": " ".join(dice.choices(WORDS, k=dice.randint(1, 6)))}
        if dice.random() < 0.3:
            record = {"id": dice.randrange(10**9), **record, "meta": {"a": [1.5, None, True]}}
        spaces = dice.choice([(", ", ": "), (",", ":")])
        lines.append(json.dumps(record, ensure_ascii=dice.random() < 0.5, separators=spaces).encode())
    end = dice.choice([b"\n", b"\n", b"\r\n"])
    return end.join(lines) + (end if dice.random() < 0.8 else b"")


def mutant(dice: random.Random, content: bytes) -> bytes:
    """The file with one to three damages: bits flipped, bytes put in, taken out, doubled, moved, lines spliced, cut."""
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        content = dice.choice(_DAMAGES)(dice, content)
    return content


def _span(dice: random.Random, content: bytes) -> tuple[int, int]:
    begin = dice.randint(0, len(content))
    return begin, min(len(content), begin + dice.choice([1, 1, 2, 5, 40]))


def _flip(dice: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 4])):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _insert(dice: random.Random, content: bytes) -> bytes:
    place = dice.randint(0, len(content))
    new = dice.choice([*_BYTES, dice.randbytes(dice.randint(1, 8))])
    return content[:place] + new + content[place:]


def _delete(dice: random.Random, content: bytes) -> bytes:
    begin, end = _span(dice, content)
    return content[:begin] + content[end:]


def _double(dice: random.Random, content: bytes) -> bytes:
    begin, end = _span(dice, content)
    return content[:end] + content[begin:]


def _move(dice: random.Random, content: bytes) -> bytes:
    begin, end = _span(dice, content)
    rest = content[:begin] + content[end:]
    place = dice.randint(0, len(rest))
    return rest[:place] + content[begin:end] + rest[place:]


def _splice(dice: random.Random, content: bytes) -> bytes:
    """The beginning of one line goes on as the end of another."""
    lines = content.split(b"\n")
    first, second = dice.choice(lines), dice.randrange(len(lines))
    other = lines[second]
    lines[second] = first[: dice.randint(0, len(first))] + other[dice.randint(0, len(other)) :]
    return b"\n".join(lines)


def _cut(dice: random.Random, content: bytes) -> bytes:
    return content[: dice.randint(0, len(content))]


_DAMAGES = [_flip, _insert, _delete, _double, _move, _splice, _cut]


def lines_of(content: bytes) -> list[bytes]:
    """The lines of a file, without line ends, and without a byte order mark at its start."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]


def text_of(line: bytes) -> str | None:
    """The text of one line by Python's own JSON reader; None when the line has none."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse, parse_float=_number)
        text = record["text"] if isinstance(record, dict) else None
        json.dumps(record, ensure_ascii=False).encode("utf-8")  # refuses surrogates anywhere
    except (ValueError, KeyError):
        return None
    return text if isinstance(text, str) else None


def _refuse(word: str) -> float:
    raise ValueError(word)


def _number(digits: str) -> float:
    if float(digits) in (float("inf"), float("-inf")):
        raise ValueError(digits)
    return float(digits)


def damaged_bytes(random: np.random.Generator, good: bytes, masks: tuple[int, ...], cuts: int) -> list[bytes]:
    """Every byte changed by each mask and by a random one; then `cuts` times cut off, cut out, and overwritten."""
    mutants = [
        good[:i] + bytes([good[i] ^ change]) + good[i + 1 :]
        for i in range(len(good))
        for change in (*masks, int(random.integers(1, 256)))
    ]
    for _ in range(cuts):
        i, j = sorted(random.integers(0, len(good) + 1, 2))
        mutants += [good[:i], good[:i] + good[j:], good[:j] + random.bytes(int(random.integers(1, 20))) + good[j:]]
    return [mutant for mutant in mutants if mutant != good]
