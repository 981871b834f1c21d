"""Words, characters and sentences of hand-made texts; which characters are common."""

from __future__ import annotations

import pytest

from megatron_ext.data.curriculum.text_units import is_character, is_uncommon_character, sentences, units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's well-known trick, 42 times!", ["The", "cat's", "well-known", "trick", "42", "times"]),
        ("天地玄黄，宇宙。", ["天", "地", "玄", "黄", "宇", "宙"]),
        ("用GPU训练2次", ["用", "GPU", "训", "练", "2", "次"]),
        ("naïve Größe мир x_1", ["naïve", "Größe", "мир", "x", "1"]),
        ("かな カタ ไทย", ["か", "な", "カ", "タ", "ไ", "ท", "ย"]),
        ("𠀀🙂 -- '", ["𠀀"]),
        ("", []),
    ],
)
def test_units(text: str, expected: list[str]):
    assert units(text) == expected
    assert [unit for unit in expected if is_character(unit)] == [unit for unit in expected if ord(unit[0]) > 0xE00]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("Pi is 3.14 at example.org today", 1),
        ("“Stop.” He stopped...", 2),
        ("床前明月光，疑是地上霜。举头望明月，低头思故乡。", 2),
        ("真的吗？！是……的", 3),
        ("A title\n\nA line\nbroken in two.", 2),
        ("... !!! 。", 0),
    ],
)
def test_sentences(text: str, count: int):
    found = list(sentences(text))
    assert len(found) == count
    assert [unit for sentence in found for unit in units(sentence)] == units(text)


def test_common_characters_are_those_of_the_standards():
    assert not any(
        map(is_uncommon_character, "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主")
    )
    assert not any(map(is_uncommon_character, "這個國來們對時會爾學書"))  # traditional
    assert all(map(is_uncommon_character, "饕餮魑魅龘曌昃𠀀"))
    simplified = [chr(code) for code in range(0x4E00, 0xA000) if _in_gb2312(chr(code))]
    assert len(simplified) == 6763
    assert sum(not is_uncommon_character(character) for character in simplified) == 3755


def _in_gb2312(character: str) -> bool:
    return bool(character.encode("gb2312", errors="ignore"))
