"""The compiled operations give the same values as their numpy twins, bit for bit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext import native, native_numpy

needs_compiler = pytest.mark.skipif(not native.COMPILED, reason="the extension is not built")
GOLDEN = 0x9E3779B97F4A7C15
KEYS = st.integers(0, 2**64 - 1)


@needs_compiler
@settings(deadline=None, max_examples=50)
@given(key=KEYS, start=st.integers(0, 2**62), count=st.integers(0, 3000))
def test_counter_normal_has_the_twins_bits(key: int, start: int, count: int):
    ours, twin = native.counter_normal(key, start, count), native_numpy.counter_normal(key, start, count)
    assert ours.dtype == twin.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.int32), twin.view(np.int32))


@needs_compiler
def test_counter_normal_has_the_twins_bits_in_many_samples():
    ours, twin = native.counter_normal(21, 0, 2_000_000), native_numpy.counter_normal(21, 0, 2_000_000)
    np.testing.assert_array_equal(ours.view(np.int32), twin.view(np.int32))


def key_for(bits: int) -> int:
    """The key whose element 0 is made of these 64 bits: mix64 inverted."""
    return (unmix((unmix(bits) - native_numpy.mix64(GOLDEN)) % 2**64) - GOLDEN) % 2**64


def unmix(z: int) -> int:
    z ^= z >> 31 ^ z >> 62
    z = z * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    z ^= z >> 27 ^ z >> 54
    z = z * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return z ^ z >> 30 ^ z >> 60


@needs_compiler
@pytest.mark.parametrize("from_the_end", [False, True])
def test_counter_normal_has_the_twins_bits_in_every_branch_of_the_inverse(from_the_end: bool):
    largest = 0.0
    for exponent in range(64):
        bits = 2**64 - 1 - (1 << exponent) if from_the_end else 1 << exponent
        ours, twin = (module.counter_normal(key_for(bits), 0, 1) for module in (native, native_numpy))
        assert ours.view(np.int32) == twin.view(np.int32)
        largest = max(largest, abs(float(ours[0])))
    assert largest > 8.1  # the outermost value there is, beyond the tail's border at about 6.7


@needs_compiler
@settings(deadline=None, max_examples=50)
@given(key=KEYS, size=st.integers(1, 2**62), seed=st.integers(0, 1000))
def test_permute_gives_the_twins_values(key: int, size: int, seed: int):
    indices = np.random.default_rng(seed).integers(0, size, 100)
    np.testing.assert_array_equal(native.permute(key, size, indices), native_numpy.permute(key, size, indices))


@pytest.mark.parametrize("module", [native, native_numpy])
def test_out_of_range_arguments_are_refused(module):
    with pytest.raises(IndexError):
        module.permute(1, 10, np.array([10]))
    with pytest.raises(ValueError):
        module.permute(1, 0, np.array([], np.int64))
    with pytest.raises(ValueError):
        module.counter_normal(1, -1, 3)


def test_without_the_extension_one_warning_and_the_twins():
    code = (
        "import sys; sys.modules['megatron_ext._native'] = None\n"
        "from megatron_ext import native, native_numpy\n"
        "import importlib; importlib.reload(native)\n"
        "assert not native.COMPILED and native.permute is native_numpy.permute\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("warning:") == 1
    assert "same values, slower" in result.stderr


@needs_compiler
@settings(deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(-1, 70000), max_size=5), max_size=6),
    eod=st.sampled_from([-1, 0, 7, 65535, 65536, 2**31 - 1]),
    itemsize=st.sampled_from([2, 4]),
)
def test_pack_tokens_is_its_twin(texts: list[list[int]], eod: int, itemsize: int):
    ids = np.array([i for text in texts for i in text], np.int32)
    lengths = np.array([len(text) for text in texts], np.int64)

    def outcome(module: object) -> object:
        try:
            content, documents, largest = module.pack_tokens(ids, lengths, eod, itemsize)  # type: ignore[attr-defined]
        except ValueError:
            return "refused"
        return content, documents.tolist(), largest

    assert outcome(native) == outcome(native_numpy)


@pytest.mark.parametrize("module", [pytest.param(native, marks=needs_compiler), native_numpy])
def test_pack_tokens_lays_documents_end_to_end_and_wraps_nothing(module: object):
    ids, lengths = np.array([1, 2, 65535], np.int32), np.array([2, 0, 1], np.int64)
    content, documents, largest = module.pack_tokens(ids, lengths, 9, 2)  # type: ignore[attr-defined]
    assert np.frombuffer(content, np.uint16).tolist() == [1, 2, 9, 65535, 9]
    assert (documents.tolist(), largest) == ([3, 2], 65535)
    for bad in (65536, -1):
        with pytest.raises(ValueError, match="do not fit 2 bytes"):
            module.pack_tokens(np.array([bad], np.int32), np.array([1], np.int64), -1, 2)  # type: ignore[attr-defined]
