"""Text scores against simple formulas and hand counts, in English, Chinese and both at once."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.curriculum.text_scores import compression, diversity, readability
from megatron_ext.data.curriculum.text_units import units

ENGLISH = "The cat sat on the mat. The extraordinary cat contemplated mathematics!"
CHINESE = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


def test_compression_is_the_ratio_of_sizes():
    for text in (ENGLISH, CHINESE, ENGLISH * 50, CHINESE * 50):
        size = len(text.encode())
        assert compression(text) == len(zlib.compress(text.encode(), 6)) / size
    assert compression(CHINESE * 50) < 0.1 < 0.9 < compression(CHINESE)
    dice = random.Random(0)
    noise = "".join(chr(dice.randrange(0x4E00, 0x9FFF)) for _ in range(2000))
    assert compression(noise) > 2 * compression(CHINESE * 10 + ENGLISH * 20)
    assert compression("") == 0


def moving_average(words: list[str], window: int) -> float:
    window = min(window, len(words))
    ratios = [len(set(words[first : first + window])) / window for first in range(len(words) - window + 1)]
    return sum(ratios) / len(ratios)


@given(st.lists(st.sampled_from(["a", "b", "the", "天", "地", "dog", "42"]), min_size=1, max_size=130))
def test_diversity_is_the_mean_over_all_windows(words: list[str]):
    assert diversity(" ".join(words)) == pytest.approx(moving_average(words, 50), rel=1e-12)


def test_diversity_by_hand():
    assert diversity("The the THE cat") == 0.5
    assert diversity("天天向上") == 0.75
    assert diversity("one two three") == 1 and diversity("... 。") == 0


def test_diversity_does_not_depend_on_the_length():
    dice = random.Random(1)
    words = [str(dice.randrange(60)) for _ in range(4000)]
    assert diversity(" ".join(words[:1000])) == pytest.approx(diversity(" ".join(words)), abs=0.02)


def test_readability_by_hand():
    # 11 words in 2 sentences; extraordinary, contemplated, mathematics are long
    assert len(units(ENGLISH)) == 11
    assert readability(ENGLISH) == pytest.approx(11 / 2 + 100 * 3 / 11)
    # 20 characters, all common, in 2 sentences: 20 / 1.5 words
    assert readability(CHINESE) == pytest.approx(20 / 1.5 / 2)
    # 2 of 8 characters are rare
    assert readability("日月盈昃，辰宿列饕。") == pytest.approx(8 / 1.5 + 100 * 2 / 8)
    # 2 words, one of them long, and 3 characters
    assert readability("用 Pytorch 做 fun 事。") == pytest.approx(4 + 100 / 4)
    assert readability("") == readability("。。。") == 0


def test_longer_sentences_and_rarer_words_are_harder():
    assert readability("I see. You run. We go.") < readability("I see you run and we go.")
    assert (
        readability("小猫吃鱼。小狗睡觉。") < readability("小猫吃鱼而小狗睡觉。") < readability("饕餮噬鲲而魑魅寤寐。")
    )


@given(st.text(max_size=200))
def test_any_text_has_finite_scores(text: str):
    assert 0 <= diversity(text) <= 1
    assert 0 <= readability(text) < 1000
    assert 0 <= compression(text) <= 20
